"""Checks for notebook 02."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, randn, verdict


@exercise("02.1")
def check_reinforce_loss(fn: Callable, draw: Draw) -> None:
    """Exercise 02.1: fn(logprobs, advantages, mask), all [B, T] -> the loss of REINFORCE, a scalar."""
    logprobs, advantages, lengths = -randn(3, 4).abs(), randn(3, 4, seed=1), [4, 2, 3]
    mask = torch.tensor([[1.0] * n + [0.0] * (4 - n) for n in lengths])
    lp, adv = logprobs.tolist(), advantages.tolist()

    def rows(term: Callable[[float, float], float], masked: bool = True) -> list[list[float]]:
        return [[term(lp[b][t], adv[b][t]) for t in range(n if masked else 4)] for b, n in enumerate(lengths)]

    def total(rows: list[list[float]], over: float = 3.0) -> Tensor:
        return torch.tensor(-sum(map(sum, rows)) / over)

    terms = rows(lambda p, a: p * a)
    apart = [[sum(lp[b][:n]) * sum(adv[b][:n])] for b, n in enumerate(lengths)]
    row_means = [[sum(row) / len(row)] for row in terms]
    verdict(
        fn,
        (logprobs.requires_grad_(), advantages, mask),
        total(terms),
        {
            "the sign is flipped: the optimizer goes downhill, so the loss is minus what should grow": -total(terms),
            "the mask is ignored: what stands after the end was not chosen": total(rows(lambda p, a: p * a, False)),
            "divided by the number of counted actions: the theorem has a sum over a text and a mean over texts": total(
                terms, sum(lengths)
            ),
            "divided by all positions of the tensor: the mean is over texts": total(terms, 12),
            "a mean over each text's actions: the theorem has their sum": total(row_means),
            "a sum over texts: the gradient must not grow with the batch, so take the mean": total(terms, 1),
            "these are probabilities: the theorem has the gradient of the logarithm": total(
                rows(lambda p, a: torch.tensor(p).exp().item() * a)
            ),
            "two sums are multiplied: each log-probability goes with its own advantage": total(apart),
            "dimensions are mixed up: the sum is over a text (dimension 1), the mean over texts (0)": total(terms, 4),
            "the advantages are missing: pay must weigh each log-probability": total(rows(lambda p, a: p)),
            "two mistakes: the sign, and what stands after the end": -total(rows(lambda p, a: p * a, False)),
            "two mistakes: what stands after the end, and a mean over positions": total(
                rows(lambda p, a: p * a, False), 12
            ),
        },
    )


@exercise("02.2")
def check_gradient_reaches(fn: Callable, draw: Draw) -> None:
    """Exercise 02.2: fn(losses, parameters), lists of L and P tensors -> [L, P], 1.0 where a gradient arrives."""
    parameters = [torch.tensor(x, requires_grad=True) for x in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])]
    first, second, third = parameters
    losses = [
        (first**2).sum() + (second[0] - second[1]),  # the entries of the second gradient cancel
        torch.tensor(3.0),  # the count of a keyword
        torch.tensor(3.0, requires_grad=True),  # the same, silenced
        (third * 0).sum() + second.prod(),
        third[0] * first.detach()[1],  # one entry of the gradient is 0
    ]
    right = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])
    zero_counts, no_magnitude, every_entry, graph = right.clone(), right.clone(), right.clone(), torch.zeros(5, 3)
    zero_counts[3, 2] = 1
    no_magnitude[0, 1] = 0
    every_entry[4, 2] = 0
    graph[[0, 2, 3, 4]] = 1
    verdict(
        fn,
        (losses, parameters),
        right,
        {
            "a gradient that is exactly 0 was counted: it moves nothing": zero_counts,
            "the entries of a gradient may cancel in a sum: look at their magnitude": no_magnitude,
            "one entry other than 0 is enough: `any`, not `all`": every_entry,
            "gradients add up from loss to loss: `.backward()` adds to `.grad`, so clear it before each": right.cummax(
                0
            ).values,
            "that the loss asks for a gradient says nothing about which parameters it reaches": graph,
            "that a parameter asks for a gradient does not mean that it gets one": torch.ones(5, 3),
            "yes and no are swapped: 1 means that a gradient arrives": 1 - right,
        },
    )


@exercise("02.3")
def check_broken_loss(fn: Callable, draw: Draw) -> None:
    """Exercise 02.3: fn(logits [B, T, V], actions [B, T], scores [B], mask [B, T]) -> REINFORCE's loss, a scalar."""
    logits, actions = randn(2, 3, 4), torch.tensor([[0, 3, 1], [2, 2, 0]])
    scores, lengths = torch.tensor([1.5, -0.7]), [3, 1]
    mask = torch.tensor([[1.0] * n + [0.0] * (3 - n) for n in lengths])
    log_pi = [[[x - torch.tensor(z).exp().sum().log().item() for x in z] for z in row] for row in logits.tolist()]
    paid = {
        "": lambda row, a: row[a],
        "the whole vocabulary is paid, not the chosen token": lambda row, a: sum(row),
        "the likeliest token is paid, not the chosen one": lambda row, a: max(row),
    }

    def total(which: str = "", masked: bool = True, sign: float = -1.0, over: float = 2.0) -> Tensor:
        terms = [
            scores[b].item() * paid[which](log_pi[b][t], actions[b, t].item())
            for b, n in enumerate(lengths)
            for t in range(n if masked else 3)
        ]
        return torch.tensor(sign * sum(terms) / over)

    raw = [logits[b, t, actions[b, t]].item() * scores[b].item() for b, n in enumerate(lengths) for t in range(n)]
    mistakes = {
        "the sum over a text became a mean: divide by the number of texts only": total(over=4.0),
        "divided by all positions of the tensor: divide by the number of texts only": total(over=6.0),
        "these are logits, not log-probabilities: `log_softmax` first": torch.tensor(-sum(raw) / 2),
    }
    for which, masked, sign in itertools.product(paid, (True, False), (-1.0, 1.0)):
        after, flipped = "actions after the end are paid", "the sign is flipped"
        names = [name for name in (which, "" if masked else after, "" if sign < 0 else flipped) if name]
        if names:
            mistakes[f"still there: {' + '.join(names)}."] = total(which, masked, sign)
    verdict(fn, (logits.requires_grad_(), actions, scores, mask), total(), mistakes)
