"""Checks for notebook 02."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, verdict


@exercise("02.1")
def check_reinforce_loss(fn: Callable, draw: Draw) -> None:
    """Exercise 02.1: fn(logprobs, advantages, mask), all [B, T] -> the loss of REINFORCE, a scalar."""
    mask, lengths = draw.prefixes(5, 2, 3)
    B, T = mask.shape
    logprobs, advantages = -draw.randn(B, T).abs(), draw.randn(B, T)
    lp, adv = logprobs.tolist(), advantages.tolist()

    def rows(term: Callable[[float, float], float], masked: bool = True) -> list[list[float]]:
        return [[term(lp[b][t], adv[b][t]) for t in range(n if masked else T)] for b, n in enumerate(lengths)]

    def total(rows: list[list[float]], over: float = B) -> Tensor:
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
            "divided by all positions of the tensor: the mean is over texts": total(terms, B * T),
            "a mean over each text's actions: the theorem has their sum": total(row_means),
            "a sum over texts: the gradient must not grow with the batch, so take the mean": total(terms, 1),
            "these are probabilities: the theorem has the gradient of the logarithm": total(
                rows(lambda p, a: torch.tensor(p).exp().item() * a)
            ),
            "two sums are multiplied: each log-probability goes with its own advantage": total(apart),
            "dimensions are mixed up: the sum is over a text (dimension 1), the mean over texts (0)": total(terms, T),
            "the advantages are missing: pay must weigh each log-probability": total(rows(lambda p, a: p)),
            "two mistakes: the sign, and what stands after the end": -total(rows(lambda p, a: p * a, False)),
            "two mistakes: what stands after the end, and a mean over positions": total(
                rows(lambda p, a: p * a, False), B * T
            ),
        },
    )


@exercise("02.2")
def check_gradient_reaches(fn: Callable, draw: Draw) -> None:
    """Exercise 02.2: fn(losses, parameters), lists of L and P tensors -> [L, P], 1.0 where a gradient arrives."""
    first, second, third = parameters = [(1 + draw.rand(2)).requires_grad_() for _ in range(3)]
    losses = [  # for each parameter: y a gradient, n none, 0 one of zeros, c its entries cancel, s some of them are 0
        ((first**2).sum() + (second[0] - second[1]), "ycn"),
        (draw.tensor(3.0), "nnn"),  # the count of a keyword
        (draw.tensor(3.0).requires_grad_(), "nnn"),  # the same, silenced
        ((third * 0).sum() + second.prod(), "ny0"),
        (third[0] * first.detach()[1], "nns"),
        ((first * third).sum(), "yny"),
    ]
    losses, order = draw.shuffled(losses[: draw.size(5)]), draw.shuffled(range(3))

    def table(counted: str) -> Tensor:
        return torch.tensor([[float(kinds[i] in counted) for i in order] for _, kinds in losses])

    right, asked = table("ycs"), [[float(loss.requires_grad)] * 3 for loss, _ in losses]
    verdict(
        fn,
        ([loss for loss, _ in losses], [parameters[i] for i in order]),
        right,
        {
            "a gradient that is exactly 0 was counted: it moves nothing": table("ycs0"),
            "the entries of a gradient may cancel in a sum: look at their magnitude": table("ys"),
            "one entry other than 0 is enough: `any`, not `all`": table("yc"),
            "gradients add up from loss to loss: `.backward()` adds to `.grad`, so clear it before each": right.cummax(
                0
            ).values,
            "that the loss asks for a gradient says nothing about which parameters it reaches": torch.tensor(asked),
            "that a parameter asks for a gradient does not mean that it gets one": torch.ones_like(right),
            "yes and no are swapped: 1 means that a gradient arrives": 1 - right,
        },
    )


@exercise("02.3")
def check_broken_loss(fn: Callable, draw: Draw) -> None:
    """Exercise 02.3: fn(logits [B, T, V], actions [B, T], scores [B], mask [B, T]) -> REINFORCE's loss, a scalar."""
    mask, lengths = draw.prefixes(3, 1)
    B, T = mask.shape
    logits, actions, scores = draw.randn(B, T, 4), draw.integers(4, B, T), draw.randn(B)
    log_pi = [[[x - torch.tensor(z).exp().sum().log().item() for x in z] for z in row] for row in logits.tolist()]
    paid = {
        "": lambda row, a: row[a],
        "the whole vocabulary is paid, not the chosen token": lambda row, a: sum(row),
        "the likeliest token is paid, not the chosen one": lambda row, a: max(row),
    }

    def total(which: str = "", masked: bool = True, sign: float = -1.0, over: float = B) -> Tensor:
        terms = [
            scores[b].item() * paid[which](log_pi[b][t], actions[b, t].item())
            for b, n in enumerate(lengths)
            for t in range(n if masked else T)
        ]
        return torch.tensor(sign * sum(terms) / over)

    raw = [logits[b, t, actions[b, t]].item() * scores[b].item() for b, n in enumerate(lengths) for t in range(n)]
    mistakes = {
        "the sum over a text became a mean: divide by the number of texts only": total(over=sum(lengths)),
        "divided by all positions of the tensor: divide by the number of texts only": total(over=B * T),
        "these are logits, not log-probabilities: `log_softmax` first": torch.tensor(-sum(raw) / B),
    }
    for which, masked, sign in itertools.product(paid, (True, False), (-1.0, 1.0)):
        after, flipped = "actions after the end are paid", "the sign is flipped"
        names = [name for name in (which, "" if masked else after, "" if sign < 0 else flipped) if name]
        if names:
            mistakes[f"still there: {' + '.join(names)}."] = total(which, masked, sign)
    verdict(fn, (logits.requires_grad_(), actions, scores, mask), total(), mistakes)
