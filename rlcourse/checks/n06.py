"""Checks for notebook 06."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, verdict


@exercise("06.1")
def check_action_logprobs(fn: Callable, draw: Draw) -> None:
    """Exercise 06.1: fn(logits [B, N, V], ids [B, N], prompt_length) -> log-probabilities of the actions [B, T]."""
    B, P = draw.size(2), 2 + draw.more
    logits, ids = draw.randn(B, 6, 5), draw.integers(5, B, 6)

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
            "one row too early: the token at position n is predicted by the logits at n - 1": table(lambda n: n - 2),
            "the softmax runs over the positions (dimension 1): the V tokens of one position compete": torch.tensor(
                [[_log_softmax(logits[b, :, ids[b, n]].tolist())[n - 1] for n in range(P, 6)] for b in range(len(ids))]
            ),
            "always 0: gather came first, and the log-softmax sees only one number": torch.zeros(B, 6 - P),
            "these are raw logits, not log-probabilities: the log-softmax is missing": table(lambda n: n - 1, list),
            "these are probabilities: the logarithm is missing": table(lambda n: n - 1).exp(),
            "the sign is flipped: a log-probability is never above 0": -table(lambda n: n - 1),
        },
    )


@exercise("06.2")
def check_positions(fn: Callable, draw: Draw) -> None:
    """Exercise 06.2: fn(mask [B, P]) -> position ids [B, P] that make padding on the left change nothing."""
    prefix, lengths = draw.prefixes(3, 5, 1)
    mask, P = prefix.flip(1).long(), 5

    def table(numbers: Callable[[int], list[int]], padding: int = 0) -> Tensor:
        return torch.tensor([[padding] * (P - n) + numbers(n) for n in lengths])

    def counted(n: int) -> list[int]:
        return list(range(n))

    down_the_batch = [[sum(column[: b + 1]) for column in mask.T.tolist()] for b in range(len(lengths))]
    verdict(
        fn,
        (mask,),
        table(counted),
        {
            "the mask is ignored: the first real token of a padded row must stand at position 0": torch.tensor(
                [counted(P)] * len(lengths)
            ),
            "the mask only made zeros of the padding: the first real token must stand at position 0": table(
                lambda n: list(range(P - n, P))
            ),
            "off by one: the first real token stands at position 0, not 1": table(lambda n: list(range(1, n + 1))),
            "padding has negative positions, which no embedding table has: clamp them at 0": table(counted, -1),
            "padding stands at 1: hidden behind the mask it does no harm, but asked is 0": table(counted, 1),
            "the numbers run backwards: it is the first real token that stands at 0": table(lambda n: counted(n)[::-1]),
            "the numbers run backwards, and the padding holds the largest of them": torch.tensor(
                [[n - 1] * (P - n) + counted(n)[::-1] for n in lengths]
            ),
            "all tokens of a row stand at one place: count them one by one, with cumsum": torch.tensor(
                [[n - 1] * P for n in lengths]
            ),
            "the count runs down the batch (dimension 0): it belongs along the text (dimension 1)": torch.tensor(
                down_the_batch
            )
            - 1,
        },
        kind="integer",
    )


@exercise("06.3")
def check_response_mask(fn: Callable, draw: Draw) -> None:
    """Exercise 06.3: fn(actions [B, T], eos) -> mask [B, T], 1.0 up to and including the first EOS."""
    T, eos, other = 5, draw.integers(10).item(), lambda n: (eos + 1 + draw.integers(9, n)) % 10  # anything but EOS
    ends = "--E-E", "E-E--", "-----", "-E--E", "---E-"  # what follows the first EOS may be anything
    ends = draw.shuffled(ends[: draw.size(4)])
    actions = torch.stack([other(T) for _ in ends])
    actions[torch.tensor([[place == "E" for place in row] for row in ends])] = eos

    def table(counts: Callable[[str, int], bool]) -> Tensor:
        return torch.tensor([[float(counts(row, t)) for t in range(T)] for row in ends])

    def first(row: str) -> int:
        return row.find("E") % (T + 1)  # T where there is none

    right = table(lambda row, t: t <= first(row))
    mistakes = {
        "EOS is not counted: ending is an action the policy chose, and one that must be learned": table(
            lambda row, t: t < first(row)
        ),
        "everything but EOS counts in yours: the first EOS was chosen, what stands after it was not": table(
            lambda row, t: row[t] != "E"
        ),
        "one too many: the action after the first EOS was not chosen by the policy": table(
            lambda row, t: t <= first(row) + 1
        ),
        "what stands between the first and the second EOS is counted: the text is over at the first": table(
            lambda row, t: row[: t + 1].count("E") <= 1
        ),
        "this runs to the last EOS: the text is over at the first": table(
            lambda row, t: "E" not in row or t <= row.rfind("E")
        ),
        "this runs to the last EOS, and a row without one counts for nothing: the text is over at the first, and what "
        "was cut off counts": table(lambda row, t: t <= row.rfind("E")),
        "the count runs down the batch (dimension 0): it belongs along the text (dimension 1)": torch.tensor(
            [[float(not any(above[t] == "E" for above in ends[:b])) for t in range(T)] for b in range(len(ends))]
        ),
        "the mask is inverted: 1 means that the action counts": 1 - right,
        "a row without EOS was cut off, not ended: all its actions count": table(
            lambda row, t: t <= max(row.find("E"), 0)
        ),
        "a row without EOS counts for nothing in yours: it was cut off, and all its actions count": table(
            lambda row, t: t <= row.find("E")
        ),
        "only EOS itself counts in yours: the actions before it were chosen too": table(
            lambda row, t: t == row.find("E")
        ),
        "every action counts in yours: what stands after the first EOS was not chosen by the policy": table(
            lambda row, t: True
        ),
    }
    verdict(fn, (actions, eos), right, mistakes, kind="float")


@exercise("06.4")
def check_k3(fn: Callable, draw: Draw) -> None:
    """Exercise 06.4: fn(logprobs, ref_logprobs, mask), all [B, T] -> the k3 estimate of KL(pi || ref) [B, T]."""
    mask, lengths = draw.prefixes(4, 2)
    logprobs, ref_logprobs = -draw.randn(*mask.shape).abs(), -draw.randn(*mask.shape).abs()

    def table(one: Callable[[float], float], masked: bool = True) -> Tensor:
        d = (logprobs - ref_logprobs).tolist()
        rows = [[one(d[b][t]) if t < n or not masked else 0.0 for t in range(4)] for b, n in enumerate(lengths)]
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
            "the ratio is upside down, and only there: exp(d) is pi / ref. With d = log pi - log ref it is exp(-d), "
            "and + d is then right": table(lambda d: math.exp(d) - 1 + d),
            "the sign of the whole is flipped: k3 is never negative": table(lambda d: 1 - d - math.exp(-d)),
            "weighed by pi once more: the actions were drawn from pi already": table(lambda d: math.exp(-d) - 1 + d)
            * logprobs.exp(),
            "the two signs disagree: exp(-d) goes with + d": table(lambda d: math.exp(-d) - 1 - d),
            "this is k1: right on average, but often negative": table(lambda d: d),
            "this is k2: never negative, but biased": table(lambda d: d * d / 2),
            "the -1 is missing: the estimate must be 0 where the two policies agree": table(lambda d: math.exp(-d) + d),
        },
    )


def _log_softmax(logits: list[float]) -> list[float]:
    log_z = math.log(sum(math.exp(x) for x in logits))
    return [x - log_z for x in logits]
