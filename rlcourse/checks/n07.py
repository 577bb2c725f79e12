"""Checks for notebook 07."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import attempt, fail, randn, verdict


def check_kl_shaped_rewards(fn: Callable) -> None:
    """Exercise 07.1: fn(scores [B], logprobs, ref_logprobs, mask [B, T], kl_coef) -> rewards [B, T]."""
    scores, kl_coef = torch.tensor([2.0, -1.0, 0.5]), 0.1
    logprobs, ref_logprobs = -randn(3, 4).abs(), -randn(3, 4, seed=1).abs()
    lengths = [4, 2, 1]
    mask = torch.tensor([[1.0] * n + [0.0] * (4 - n) for n in lengths])

    def table(
        sign: float = -1.0, at: Callable[[int], range] = lambda n: range(n - 1, n), masked: bool = True
    ) -> Tensor:
        kl = (logprobs - ref_logprobs).tolist()
        return torch.tensor(
            [
                [
                    (sign * kl_coef * kl[b][t] if t < n or not masked else 0.0)
                    + (scores[b].item() if t in at(n) else 0.0)
                    for t in range(4)
                ]
                for b, n in enumerate(lengths)
            ]
        )

    verdict(
        "exercise 07.1",
        fn,
        (scores, logprobs, ref_logprobs, mask, kl_coef),
        table(),
        {
            "the sign of the KL term is flipped: leaving the reference must cost": table(sign=1.0),
            "the score lands on the last column, not on the last action that counts": table(at=lambda n: range(3, 4)),
            "the score is paid at every action: it judges the response once": table(at=lambda n: range(n)),
            "the score lands one action too late, after the end": table(at=lambda n: range(n, n + 1)),
            "roll wraps round: in a row without padding the last action loses its score": table(
                at=lambda n: range(n - 1, n) if n < 4 else range(0)
            ),
            "the score is missing": table(at=lambda n: range(0)),
            "the mask is ignored: actions after the end are charged for KL": table(masked=False),
            "the KL term is missing": table(sign=0.0),
        },
    )


def check_gae(fn: Callable) -> None:
    """Exercise 07.2: fn(rewards, values, mask [B, T], gamma, lam) -> advantages [B, T]."""
    rewards, values, lengths = randn(2, 5), randn(2, 5, seed=1), [5, 3]
    mask = torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in lengths])
    gamma, lam = 0.9, 0.7

    def table(
        decay: float = gamma * lam, next_value: float = gamma, masked: bool = True, minus_v: bool = True
    ) -> Tensor:
        result = torch.zeros(2, 5)
        for b, length in enumerate(lengths):
            end = length if masked else 5
            for t in range(end):
                for k in range(t, end):  # the definition: a discounted sum of one-step errors, with no recursion
                    following = values[b, k + 1] if k + 1 < end else 0.0
                    delta = rewards[b, k] + next_value * following - (values[b, k] if minus_v else 0.0)
                    result[b, t] += decay ** (k - t) * delta
        return result

    verdict(
        "exercise 07.2",
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
            "V at the present state is missing from the one-step error": table(minus_v=False),
            "these are returns, advantages plus values: return the advantages only": table() + values * mask,
            "values after the end leak back into the response; masking the result comes too late": table(masked=False)
            * mask,
            "the sign is flipped": -table(),
        },
    )


def check_clipped_surrogate_loss(fn: Callable) -> None:
    """Exercise 07.3: fn(logprobs, old_logprobs, advantages, mask [B, T], clip_eps) -> scalar loss."""
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5], [1.1, 0.9, 3.0, 0.2]])
    advantages = torch.tensor(
        [[1.0, -1.3, 2.1, -2.9], [0.5, -0.7, 4.0, 5.0]]
    )  # odd numbers: no two mistakes add up alike
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    old_logprobs = -1 - randn(2, 4).abs()

    def clip(r: float, eps: float = 0.3) -> float:
        return min(max(r, 1 - eps), 1 + eps)

    def total(term=lambda r, a: min(r * a, clip(r) * a), counted: bool = True, over: float | None = None) -> Tensor:
        columns = ratio.flatten().tolist(), advantages.flatten().tolist(), mask.flatten().tolist()
        terms = [term(r, a) for r, a, m in zip(*columns) if m or not counted]
        return torch.tensor(-sum(terms) / (over or len(terms)))

    verdict(
        "exercise 07.3",
        fn,
        ((old_logprobs + ratio.log()).requires_grad_(), old_logprobs, advantages, mask, 0.3),
        total(),
        {
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
            "divided by all positions instead of those that count": total(over=8),
            "a sum where the mean over counted actions was asked for": total(over=1),
        },
    )


def check_reward(fn: Callable) -> None:
    """Exercise 07.4: fn(prompts, responses) -> one finite float for each response, in a tensor [B]."""
    responses = [" a quiet, careful story about two brothers.", " good good good good", " Why? Who knows?", ""]
    prompts = ["The film is"] * len(responses)
    scores = attempt("exercise 07.4", fn, (prompts, responses))
    if scores is None:
        return
    if not isinstance(scores, Tensor) or scores.shape != (4,) or not scores.is_floating_point():
        got = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        fail("exercise 07.4", f"expected a float tensor of shape (4,), one score for each response, got {got}")
    if not scores.isfinite().all():
        fail("exercise 07.4", f"scores must be finite, also for an empty response, got {scores.tolist()}")
    if scores.requires_grad:
        fail("exercise 07.4", "a reward carries no gradient: the policy learns from its value, not through it")
    alone = torch.cat([fn([p], [r]) for p, r in zip(prompts, responses)])
    if not torch.allclose(scores, alone, atol=1e-5):
        fail("exercise 07.4", "a response's score depends on the other responses in the batch, or on chance")
    print("exercise 07.4: right")
    if scores.min() == scores.max():
        print("but four very different responses all score the same: does your policy ever write what you pay for?")
