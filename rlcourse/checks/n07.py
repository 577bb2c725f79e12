"""Checks for notebook 07."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.asked import Asked, Raised
from rlcourse.checks.verdict import TOLERANCE, Draw, demand, exercise, fail, verdict


@exercise("07.1")
def check_kl_shaped_rewards(fn: Callable, draw: Draw) -> None:
    """Exercise 07.1: fn(scores [B], logprobs, ref_logprobs, mask [B, T], kl_coef) -> rewards [B, T]."""
    mask, lengths = draw.prefixes(4, 2, 1)
    scores, kl_coef = 2 * draw.randn(len(mask)), draw.number(0.1, 0.5)
    logprobs, ref_logprobs = -draw.randn(*mask.shape).abs(), -draw.randn(*mask.shape).abs()

    def table(
        sign: float = -1.0, at: Callable[[int], range] = lambda n: range(n - 1, n), masked: bool = True,
        price: float = kl_coef, parts: Callable[[int], float] = lambda n: 1.0, replaces: bool = False,
    ) -> Tensor:  # fmt: skip
        kl, rewards = (logprobs - ref_logprobs).tolist(), torch.zeros(mask.shape)
        for b, n in enumerate(lengths):
            for t in range(4):
                paid = t in at(n)
                if (t < n or not masked) and not (paid and replaces):
                    rewards[b, t] += sign * price * kl[b][t]
                if paid:
                    rewards[b, t] += scores[b] / parts(n)
        return rewards

    verdict(
        fn,
        (scores, logprobs, ref_logprobs, mask, kl_coef),
        table(),
        {
            "the sign of the KL term is flipped: leaving the reference must cost": table(sign=1.0),
            "the score lands on the last column, not on the last action that counts": table(at=lambda n: range(3, 4)),
            "the score is paid at every action: it judges the response once": table(at=lambda n: range(n)),
            "the score lands one action too early: it belongs to the last action that counts": table(
                at=lambda n: range(n - 2, n - 1)
            ),
            "the score is spread over the actions: it is paid once, at the last one that counts": table(
                at=range, parts=float
            ),
            "the score replaces the KL price of the last action instead of being added": table(replaces=True),
            "kl_coef is forgotten: the log-ratio costs kl_coef a nat": table(price=1.0),
            "the score lands one action too late, after the end": table(at=lambda n: range(n, n + 1)),
            "roll wraps round: in a row without padding the last action loses its score": table(
                at=lambda n: range(n - 1, n) if n < 4 else range(0)
            ),
            "the score is missing": table(at=lambda n: range(0)),
            "the mask is ignored: actions after the end are charged for KL": table(masked=False),
            "the KL term is missing": table(sign=0.0),
        },
    )


@exercise("07.2")
def check_gae(fn: Callable, draw: Draw) -> None:
    """Exercise 07.2: fn(rewards, values, mask [B, T], gamma, lam) -> advantages [B, T]."""
    mask, lengths = draw.prefixes(5, 3)
    rewards, values = draw.randn(*mask.shape), draw.randn(*mask.shape)
    gamma, lam = draw.number(0.7, 0.95), draw.number(0.5, 0.9)

    def table(
        decay: float = gamma * lam, next_value: float = gamma, masked: bool = True, minus_v: float = 1.0,
        carried_to: Callable[[int], int] = lambda n: n, seen_to: Callable[[int], int] = lambda n: n, stay: int = 0,
    ) -> Tensor:  # fmt: skip
        """carried_to, seen_to: where advantages and values of a response of n actions end."""
        result, r, v = torch.zeros(mask.shape), rewards.tolist(), values.tolist()
        for b, length in enumerate(lengths):
            last, seen = (carried_to(length), seen_to(length)) if masked else (5, 5)
            for t in range(last):
                for k in range(t, last):  # the definition: a discounted sum of one-step errors, with no recursion
                    following = v[b][k + 1 - stay] if k + 1 - stay < seen else 0.0
                    result[b, t] += decay ** (k - t) * (r[b][k] + next_value * following - minus_v * v[b][k])
        return result

    crossing = table(carried_to=lambda n: 5)
    verdict(
        fn,
        (rewards, values, mask, gamma, lam),
        table(),
        {
            "the mask is ignored: values after the end leak back into the response": table(masked=False),
            "lam is missing from the recursion": table(decay=gamma),
            "gamma is missing from the recursion": table(decay=lam),
            "only the one-step errors are returned: nothing is carried back": table(decay=0.0),
            "V(next state) is missing from the one-step error": table(next_value=0.0),
            "V(next state) is not discounted by gamma": table(next_value=1.0),
            "V at the present state is missing from the one-step error": table(minus_v=0.0),
            "these are returns, advantages plus values: return the advantages only": table() + values * mask,
            "values after the end leak back into the response; masking the result comes too late": table(masked=False)
            * mask,
            "the value of the padding leaks in: multiply next_value by the mask too": table(
                seen_to=lambda n: min(n + 1, 5)
            ),
            "the carried advantage crosses the end: multiply it by the mask too": crossing,
            "the carried advantage crosses the end, and masking the result comes too late: mask what is carried": (
                crossing * mask
            ),
            "V at the present state stands where V(next state) belongs": table(stay=1),
            "V at the present state is added: it has to be subtracted": table(minus_v=-1.0),
            "the sign is flipped": -table(),
        },
    )


@exercise("07.3")
def check_clipped_surrogate_loss(fn: Callable, draw: Draw) -> None:
    """Exercise 07.3: fn(logprobs, old_logprobs, advantages, mask [B, T], clip_eps) -> scalar loss."""
    mask, lengths = draw.prefixes(4, 2)
    clip_eps = draw.number(0.3, 0.4)
    ratio = draw.rand(*mask.shape, low=0.3, high=2.0)
    ratio[lengths.index(4)] = draw.tensor(draw.shuffled([1.5, 1.6, 0.5, 0.4]))  # both sides of the clip, both signs
    advantages = draw.randn(*mask.shape) * 2
    old_logprobs = -1 - draw.randn(*mask.shape).abs()

    def clip(r: float, eps: float = clip_eps) -> float:
        return min(max(r, 1 - eps), 1 + eps)

    def surrogate(r: float, a: float) -> float:
        return min(r * a, clip(r) * a)

    def total(term=surrogate, counted: bool = True, over: float | None = None) -> Tensor:
        columns = ratio.flatten().tolist(), advantages.flatten().tolist(), mask.flatten().tolist()
        terms = [term(r, a) for r, a, m in zip(*columns) if m or not counted]
        return torch.tensor(-sum(terms) / (over or len(terms)))

    rows = [list(map(surrogate, r[:n], a[:n])) for r, a, n in zip(ratio.tolist(), advantages.tolist(), lengths)]
    logprobs = old_logprobs + ratio.log()
    verdict(
        fn,
        (logprobs.clone().requires_grad_(), old_logprobs, advantages, mask, clip_eps),
        total(),
        {
            "the ratio is upside down: new over old": total(lambda r, a: surrogate(1 / r, a)),
            "actions after the end are in the sum, though not in the count": total(counted=False, over=sum(lengths)),
            "divided by the number of rows: the mean is over the counted actions": total(over=len(lengths)),
            "a mean of each row's mean: every counted action weighs the same": -torch.tensor(
                [sum(row) / len(row) for row in rows]
            ).mean(),
            "max instead of min: an action that became likelier although it was bad is no longer punished": total(
                lambda r, a: max(r * a, clip(r) * a)
            ),
            "the sign is flipped: a loss is minimised, so it is minus the surrogate": -total(),
            "clipped only, without the min: a harmful change is cut off and gets no gradient": total(
                lambda r, a: clip(r) * a
            ),
            "no clipping at all: nothing holds the policy near the one that sampled": total(lambda r, a: r * a),
            "the min is over the ratios: it must be over the products with the advantage": total(
                lambda r, a: min(r, clip(r)) * a
            ),
            "the product is clipped: clip the ratio, then multiply": total(lambda r, a: min(r * a, clip(r * a))),
            "clip_eps is ignored: it is an argument, not always 0.2": total(lambda r, a: min(r * a, clip(r, 0.2) * a)),
            "the mask is ignored: actions after the end take part": total(counted=False),
            "divided by all positions instead of those that count": total(over=mask.numel()),
            "a sum where the mean over counted actions was asked for": total(over=1),
        },
    )
    loud = torch.where(mask > 0, logprobs, old_logprobs + 1000).requires_grad_()
    demand(
        fn,
        (loud, old_logprobs, torch.where(mask > 0, advantages, -1.0), mask, clip_eps),
        total(),
        "a masked action with a log-ratio of 1000 makes nan of it: exp overflows, and infinity times 0 is nan; make "
        "the masked log-ratios 0 before exp",
    )


@exercise("07.4", patience=6)  # a reward may well be a model
def check_reward(fn: Callable, draw: Draw) -> str | None:
    """Exercise 07.4: fn(prompts, responses) -> one finite float for each response, in a tensor [B]."""
    responses = [" a quiet, careful story about two brothers.", " good good good good", " Why? Who knows?", ""]
    responses = draw.shuffled(responses + [" not bad, not good either."] * draw.more)
    prompts = [draw.shuffled(["The film is", "The plot was"])[0] for _ in responses]
    scores = _judged_scores(fn, prompts, [text or " So so." for text in responses])
    try:
        scores = _judged_scores(fn, prompts, responses)
    except Raised as raised:
        fail(f"an empty response must get a finite score, too: your function raised {raised.args[0]!r} for it")
    alone = torch.cat([_judged_scores(fn, [p], [r]) for p, r in zip(prompts, responses)])
    if not torch.allclose(scores.double(), alone.double(), rtol=TOLERANCE.get(scores.dtype, 1e-4), atol=1e-5):
        fail("a response's score depends on the other responses in the batch, or on chance")
    film, plot = (
        _judged_scores(fn, [prompt] * len(responses), responses) for prompt in ("The film is", "The plot was")
    )
    if film.min() == film.max() != plot.max() == plot.min():
        fail("only the prompt is scored: whatever the policy writes is paid the same, so there is nothing to learn")
    if scores.min() == scores.max():
        return "but none of our sample responses earns more than another: does your policy ever write what you pay for?"


def _judged_scores(fn: Asked, prompts: list[str], responses: list[str]) -> Tensor:
    B = len(responses)
    scores = fn(prompts, responses)
    if not isinstance(scores, Tensor) or scores.shape != (B,) or not scores.is_floating_point():
        got = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        fail(f"expected a float tensor of shape ({B},), one score for each response, got {got}")
    if not scores.isfinite().all():
        fail(f"scores must be finite, also for an empty response, got {scores.tolist()}")
    if scores.requires_grad:
        fail("a reward carries no gradient: the policy learns from its value, not through it")
    return scores
