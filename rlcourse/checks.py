"""Checks for the exercises: each takes your function, compares it with an answer found another way, names the mistake.

A check prints one line when the exercise is right or not attempted yet, and raises AssertionError when it is wrong.
With RLCOURSE_STRICT=1 in the environment an unattempted exercise is an error too.
"""

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor


def check_action_logprobs(fn: Callable) -> None:
    """Exercise 06.1: fn(logits [B, N, V], ids [B, N], prompt_length) -> log-probabilities of the actions [B, T]."""
    logits, ids, P = _randn(2, 6, 5), torch.tensor([[0, 1, 2, 3, 4, 1], [0, 3, 3, 2, 1, 0]]), 2

    def table(read_at: Callable[[int], int], score: Callable = _log_softmax) -> Tensor:
        return torch.tensor(
            [[score(logits[b, read_at(n)].tolist())[ids[b, n]] for n in range(P, 6)] for b in range(len(ids))]
        )

    _verdict(
        "exercise 06.1",
        fn,
        (logits, ids, P),
        table(lambda n: n - 1),
        {
            "shifted by one token: logits at position n are the prediction of token n + 1, but you score token n with "
            "the logits that have already read it": table(lambda n: n),
            "these are raw logits, not log-probabilities: the log-softmax is missing": table(lambda n: n - 1, list),
            "these are probabilities: the logarithm is missing": table(lambda n: n - 1).exp(),
            "the sign is flipped: a log-probability is never above 0": -table(lambda n: n - 1),
        },
    )


def check_positions(fn: Callable) -> None:
    """Exercise 06.2: fn(mask [B, P]) -> position ids [B, P] that make padding on the left change nothing."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    right = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]])
    counts_from_one = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 3, 4, 5], [0, 0, 0, 0, 1]])
    _verdict(
        "exercise 06.2",
        fn,
        (mask,),
        right,
        {
            "the mask is ignored: the first real token of a padded row must stand at position 0": torch.arange(
                5
            ).repeat(3, 1),
            "off by one: the first real token stands at position 0, not 1": counts_from_one,
            "padding has negative positions, which no embedding table has: clamp them at 0": counts_from_one - 1,
        },
    )


def check_response_mask(fn: Callable) -> None:
    """Exercise 06.3: fn(actions [B, T], eos) -> mask [B, T], 1.0 up to and including the first EOS."""
    actions = torch.tensor([[5, 6, 9, 9, 9], [9, 9, 9, 9, 9], [1, 2, 3, 4, 5], [4, 9, 9, 9, 9]])
    lengths = {"right": [3, 1, 5, 2], "no eos": [2, 0, 5, 1]}
    rows = {name: torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in ns]) for name, ns in lengths.items()}
    mistakes = {
        "EOS is not counted: ending is an action the policy chose, and one that must be learned": rows["no eos"],
        "the mask is inverted: 1 means that the action counts": 1 - rows["right"],
        "a row without EOS was cut off, not ended: all its actions count": torch.tensor(
            [[1.0] * n + [0.0] * (5 - n) for n in (3, 1, 1, 2)]
        ),
        "every action counts in yours: what stands after the first EOS was not chosen by the policy": torch.ones(4, 5),
    }
    _verdict("exercise 06.3", fn, (actions, 9), rows["right"], mistakes)


def check_k3(fn: Callable) -> None:
    """Exercise 06.4: fn(logprobs, ref_logprobs, mask), all [B, T] -> the k3 estimate of KL(pi || ref) [B, T]."""
    logprobs, ref_logprobs = -_randn(2, 4).abs(), -_randn(2, 4, seed=1).abs()
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])

    def table(one: Callable[[float], float], masked: bool = True) -> Tensor:
        d = (logprobs - ref_logprobs).tolist()
        rows = [[one(d[b][t]) if mask[b, t] or not masked else 0.0 for t in range(4)] for b in range(2)]
        return torch.tensor(rows)

    _verdict(
        "exercise 06.4",
        fn,
        (logprobs, ref_logprobs, mask),
        table(lambda d: math.exp(-d) - 1 + d),
        {
            "the mask is ignored: what comes after the end has no KL": table(lambda d: math.exp(-d) - 1 + d, False),
            "the ratio is upside down: the actions were drawn from pi, so the ratio is ref / pi": table(
                lambda d: math.exp(d) - 1 - d
            ),
            "the sign of the log-ratio is flipped against the ratio, so the estimate is biased": table(
                lambda d: math.exp(d) - 1 + d
            ),
            "the two signs disagree: exp(-d) goes with + d": table(lambda d: math.exp(-d) - 1 - d),
            "this is k1: right on average, but often negative": table(lambda d: d),
            "this is k2: never negative, but biased": table(lambda d: d * d / 2),
            "the -1 is missing: the estimate must be 0 where the two policies agree": table(lambda d: math.exp(-d) + d),
        },
    )


def check_kl_shaped_rewards(fn: Callable) -> None:
    """Exercise 07.1: fn(scores [B], logprobs, ref_logprobs, mask [B, T], kl_coef) -> rewards [B, T]."""
    scores, kl_coef = torch.tensor([2.0, -1.0, 0.5]), 0.1
    logprobs, ref_logprobs = -_randn(3, 4).abs(), -_randn(3, 4, seed=1).abs()
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

    _verdict(
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
    rewards, values, lengths = _randn(2, 5), _randn(2, 5, seed=1), [5, 3]
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

    _verdict(
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
    old_logprobs = -1 - _randn(2, 4).abs()

    def clip(r: float, eps: float = 0.3) -> float:
        return min(max(r, 1 - eps), 1 + eps)

    def total(term=lambda r, a: min(r * a, clip(r) * a), counted: bool = True, over: float | None = None) -> Tensor:
        columns = ratio.flatten().tolist(), advantages.flatten().tolist(), mask.flatten().tolist()
        terms = [term(r, a) for r, a, m in zip(*columns) if m or not counted]
        return torch.tensor(-sum(terms) / (over or len(terms)))

    _verdict(
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
    scores = _attempt("exercise 07.4", fn, (prompts, responses))
    if scores is None:
        return
    if not isinstance(scores, Tensor) or scores.shape != (4,) or not scores.is_floating_point():
        got = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        _wrong("exercise 07.4", f"expected a float tensor of shape (4,), one score for each response, got {got}")
    if not scores.isfinite().all():
        _wrong("exercise 07.4", f"scores must be finite, also for an empty response, got {scores.tolist()}")
    if scores.requires_grad:
        _wrong("exercise 07.4", "a reward carries no gradient: the policy learns from its value, not through it")
    alone = torch.cat([fn([p], [r]) for p, r in zip(prompts, responses)])
    if not torch.allclose(scores, alone, atol=1e-5):
        _wrong("exercise 07.4", "a response's score depends on the other responses in the batch, or on chance")
    print("exercise 07.4: right")
    if scores.min() == scores.max():
        print("but four very different responses all score the same: does your policy ever write what you pay for?")


def _verdict(name: str, fn: Callable, args: tuple, right: Tensor, mistakes: dict[str, Tensor]) -> None:
    """Compare fn's answer with the right one, then with what each known mistake would give."""
    answer = _attempt(name, fn, tuple(x.clone() if isinstance(x, Tensor) else x for x in args))  # its own copies
    if answer is None:
        return
    if not isinstance(answer, Tensor):
        _wrong(name, f"expected a tensor, got {type(answer).__name__}")
    if answer.shape != right.shape:
        _wrong(name, f"the shape must be {tuple(right.shape)}, got {tuple(answer.shape)}")
    if any(isinstance(x, Tensor) and x.requires_grad for x in args) and not answer.requires_grad:
        _wrong(name, "no gradient reaches the log-probabilities: something was detached on the way")
    if _alike(answer, right):
        print(f"{name}: right")
        return
    for mistake, wrong in mistakes.items():
        if _alike(answer, wrong):
            _wrong(name, mistake)
    _wrong(name, f"expected\n{right}\ngot\n{answer}\nfor the arguments {args}")


def _attempt(name: str, fn: Callable, args: tuple):
    """fn's answer, or None after saying that there is none yet."""
    try:
        answer = fn(*args)
    except NotImplementedError:
        if os.environ.get("RLCOURSE_STRICT") == "1":
            raise
        print(f"{name}: not attempted yet")
        return None
    if answer is None:
        _wrong(name, "nothing is returned: the last line needs a return")
    return answer


def _wrong(name: str, message: str) -> None:
    raise AssertionError(f"{name}: {message}")


def _alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.detach().double(), b.double(), atol=1e-4, rtol=1e-4, equal_nan=True)


def _log_softmax(logits: list[float]) -> list[float]:
    log_z = math.log(sum(math.exp(x) for x in logits))
    return [x - log_z for x in logits]


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
