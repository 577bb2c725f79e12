"""Checks for notebook 06."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, randn, verdict


@exercise("06.1")
def check_action_logprobs(fn: Callable, draw: Draw) -> None:
    """Exercise 06.1: fn(logits [B, N, V], ids [B, N], prompt_length) -> log-probabilities of the actions [B, T]."""
    logits, ids, P = randn(2, 6, 5), torch.tensor([[0, 1, 2, 3, 4, 1], [0, 3, 3, 2, 1, 0]]), 2

    def table(read_at: Callable[[int], int], score: Callable = _log_softmax) -> Tensor:
        return torch.tensor(
            [[score(logits[b, read_at(n)].tolist())[ids[b, n]] for n in range(P, 6)] for b in range(len(ids))]
        )

    verdict(
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


@exercise("06.2")
def check_positions(fn: Callable, draw: Draw) -> None:
    """Exercise 06.2: fn(mask [B, P]) -> position ids [B, P] that make padding on the left change nothing."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    right = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]])
    counts_from_one = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 3, 4, 5], [0, 0, 0, 0, 1]])
    verdict(
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


@exercise("06.3")
def check_response_mask(fn: Callable, draw: Draw) -> None:
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
    verdict(fn, (actions, 9), rows["right"], mistakes)


@exercise("06.4")
def check_k3(fn: Callable, draw: Draw) -> None:
    """Exercise 06.4: fn(logprobs, ref_logprobs, mask), all [B, T] -> the k3 estimate of KL(pi || ref) [B, T]."""
    logprobs, ref_logprobs = -randn(2, 4).abs(), -randn(2, 4, seed=1).abs()
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])

    def table(one: Callable[[float], float], masked: bool = True) -> Tensor:
        d = (logprobs - ref_logprobs).tolist()
        rows = [[one(d[b][t]) if mask[b, t] or not masked else 0.0 for t in range(4)] for b in range(2)]
        return torch.tensor(rows)

    verdict(
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


def _log_softmax(logits: list[float]) -> list[float]:
    log_z = math.log(sum(math.exp(x) for x in logits))
    return [x - log_z for x in logits]
