"""Checks for notebook 08."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, demand, exercise, verdict


@exercise("08.1")
def check_bradley_terry(fn: Callable, draw: Draw) -> None:
    """Exercise 08.1: fn(preferred [N], rejected [N]) -> minus the mean log-likelihood of the verdicts, a scalar."""
    N = draw.size(5)
    preferred, rejected = draw.randn(N) * 2, draw.randn(N) * 2

    def mean(one: Callable[[float, float], float]) -> Tensor:
        losses = [one(a, b) for a, b in zip(preferred.tolist(), rejected.tolist())]
        return torch.tensor(sum(losses) / len(losses))

    right = mean(lambda a, b: -math.log(_chance(a - b)))
    verdict(
        fn,
        (preferred.requires_grad_(), rejected.requires_grad_()),
        right,
        {
            "the sign is flipped: a loss is minimised, so it is minus the log-likelihood": -right,
            "the two are swapped: yours is small when the rejected text scores higher": mean(
                lambda a, b: -math.log(_chance(b - a))
            ),
            "this is the sum over the pairs: equation (4) has the mean": N * right,
            "the logarithm is missing": mean(lambda a, b: -_chance(a - b)),
            "the logistic function is missing: scores without bound would win": mean(lambda a, b: b - a),
            "the logistic function must see the difference of the scores, not each score by itself": mean(
                lambda a, b: math.log(_chance(b)) - math.log(_chance(a))
            ),
            "the logarithm comes before the mean: each pair has its own likelihood": -mean(
                lambda a, b: _chance(a - b)
            ).log(),
            "this is a hinge loss: it stops at a difference of 1": mean(lambda a, b: max(0, 1 - a + b)),
        },
    )
    far = torch.tensor([60.0, -60.0])  # float32 in every case, as a reward model has it
    demand(
        fn,
        (far.clone().requires_grad_(), (-far).requires_grad_()),
        torch.tensor(60.0),
        "the loss breaks at differences of +-120, where exp overflows and the logistic function is 0: logsigmoid and "
        "softplus do not, and they need no small number inside a logarithm",
    )


@exercise("08.2")
def check_soft_labels(fn: Callable, draw: Draw) -> None:
    """Exercise 08.2: fn(first [N], second [N], probability [N]) -> cross-entropy of people and model, a scalar."""
    N = draw.size(5)
    first, second, probability = draw.randn(N) * 2, draw.randn(N) * 2, draw.rand(N, low=0.05, high=0.95)

    def mean(one: Callable[[float, float], float]) -> Tensor:
        rows = zip((first - second).tolist(), probability.tolist())
        return torch.tensor(sum(one(d, p) for d, p in rows) / len(first))

    def cross_entropy(d: float, p: float) -> float:
        return -p * math.log(_chance(d)) - (1 - p) * math.log(_chance(-d))

    right = mean(cross_entropy)
    verdict(
        fn,
        (first.requires_grad_(), second.requires_grad_(), probability),
        right,
        {
            "the sign is flipped: a loss is minimised": -right,
            "the labels are ignored: this is the loss of hard verdicts (or both terms hold the same logarithm, so that "
            "p cancels)": mean(lambda d, p: -math.log(_chance(d))),
            "only one of two cases: those who prefer the second text, 1 - p of them, are missing": mean(
                lambda d, p: -p * math.log(_chance(d))
            ),
            "the second case is subtracted: both cases add to the loss": mean(
                lambda d, p: -p * math.log(_chance(d)) + (1 - p) * math.log(_chance(-d))
            ),
            "the shares are swapped: p belongs to the first text": mean(lambda d, p: cross_entropy(d, 1 - p)),
            "the share is rounded to a verdict: 0.6 must not become 1": mean(
                lambda d, p: -math.log(_chance(d if p > 0.5 else -d))
            ),
            "the share must weigh the logarithms, not the difference": mean(lambda d, p: -math.log(_chance(p * d))),
            "this is a squared error of probabilities: equation (4) has logarithms": mean(
                lambda d, p: (_chance(d) - p) ** 2
            ),
            "this is the sum over the pairs: equation (4) has the mean": N * right,
            "this is the KL divergence: it has the same gradient, but equation (4) does not subtract the entropy of "
            "the labels": mean(lambda d, p: cross_entropy(d, p) - cross_entropy(math.log(p / (1 - p)), p)),
        },
    )


@exercise("08.3")
def check_last_state(fn: Callable, draw: Draw) -> None:
    """Exercise 08.3: fn(hidden [N, T, H], mask [N, T]) -> the last real token's state [N, H]; padding right."""
    mask, lengths = draw.prefixes(3, 5, 2, width=6)
    hidden = draw.randn(*mask.shape, 4)

    def rows(one: Callable[[Tensor, int], Tensor]) -> Tensor:
        return torch.stack([one(hidden[i], n) for i, n in enumerate(lengths)])

    verdict(
        fn,
        (hidden, mask),
        rows(lambda h, n: h[n - 1]),
        {
            "this is the last column, which is padding in a short row": rows(lambda h, n: h[5]),
            "off by one: the last of n tokens stands at position n - 1; yours is padding": rows(lambda h, n: h[n]),
            "off by one: this is the last but one, which has not read the whole text": rows(
                lambda h, n: h[max(n - 2, 0)]
            ),
            "this is the first token, which has read nothing of what follows": rows(lambda h, n: h[0]),
            "this is the mean over the real tokens: equation (6) takes one state": rows(lambda h, n: h[:n].mean(0)),
            "this is the sum over the real tokens: equation (6) takes one state": rows(lambda h, n: h[:n].sum(0)),
            "this is the mean over all columns, padding included": rows(lambda h, n: h.mean(0)),
            "all rows are read where the first one ends: each has its own length": rows(lambda h, n: h[lengths[0] - 1]),
            "masking makes the padding zero, but does not find the last token": rows(lambda h, n: 0 * h[0]),
        },
    )


@exercise("08.4")
def check_lower_bound(fn: Callable, draw: Draw) -> None:
    """Exercise 08.4: fn(scores [M, B], k) -> mean minus k standard deviations over the models, [B]."""
    M, k = draw.size(3), draw.number(1.5, 2.5)
    scores = draw.randn(M, 5)

    def table(one: Callable[[float, float, list[float]], float]) -> Tensor:
        answer = []
        for column in scores.T.tolist():
            mean = sum(column) / M
            answer.append(one(mean, sum((x - mean) ** 2 for x in column) / M, column))
        return torch.tensor(answer)

    verdict(
        fn,
        (scores, k),
        table(lambda mean, variance, column: mean - k * variance**0.5),
        {
            "the deviation is added: yours likes what the models disagree about": table(
                lambda mean, variance, column: mean + k * variance**0.5
            ),
            "k is ignored": table(lambda mean, variance, column: mean - variance**0.5),
            "this is the mean alone: nothing is cautious about it": table(lambda mean, variance, column: mean),
            "this is the smallest score: a bound too, but not equation (10)": table(lambda m, v, column: min(column)),
            "the square root is missing: this subtracts the variance": table(
                lambda m, variance, column: m - k * variance
            ),
            "divide by M, not by M - 1 (`correction=0`)": table(lambda m, v, column: m - k * (v * M / (M - 1)) ** 0.5),
            "the deviation runs over everything: each text has its own": table(
                lambda m, v, column: m - k * scores.std(correction=0).item()
            ),
        },
    )


def _chance(difference: float) -> float:
    """P(a beats b)."""
    return 1 / (1 + math.exp(-difference))
