"""Checks for notebook 10."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, redraw_unless, verdict


@exercise("10.1")
def check_class_f1(fn: Callable, draw: Draw) -> None:
    """Exercise 10.1: fn(labels [N], predicted [N], num_labels) -> F1 of each class, [num_labels]."""
    A, N = 4, draw.size(10)
    classes = draw.shuffled(range(A))[:3]  # one class is neither true nor predicted
    labels, predicted = ([classes[i] for i in draw.integers(3, N)] for _ in range(2))
    redraw_unless(set(labels) == set(predicted) == set(classes))

    def table(one: Callable[[int, int, int], float], nothing: float = 0.0) -> Tensor:
        found = []
        for c in range(A):
            tp = sum(y == a == c for y, a in zip(labels, predicted))
            said, true = predicted.count(c), labels.count(c)
            found.append(one(tp, said, true) if said + true else nothing)
        return torch.tensor(found)

    verdict(fn,
        (torch.tensor(labels), torch.tensor(predicted), A),
        table(lambda tp, said, true: 2 * tp / (said + true)),
        {
            "0 divided by 0: a class that is neither true nor predicted counts 0, not nan": table(
                lambda tp, said, true: 2 * tp / (said + true), math.nan
            ),
            "this is precision: divide by what was predicted and by what is true": table(
                lambda tp, said, true: tp / said
            ),
            "this is recall: saying one label for everything would get full marks there": table(
                lambda tp, said, true: tp / true
            ),
            "this is the plain average of precision and recall, F1 is their harmonic mean": table(
                lambda tp, said, true: (tp / said + tp / true) / 2
            ),
            "this is TP / (TP + FP + FN), the Jaccard index: F1 counts the hits twice, above and below": table(
                lambda tp, said, true: tp / max(1, said + true - tp)
            ),
            "the factor 2 is missing: a perfect class must get 1": table(lambda tp, said, true: tp / (said + true)),
            "this is the accuracy of one class against the rest, which counts texts that have nothing to do with "
            "the class": table(
                lambda tp, said, true: (len(labels) - said - true + 2 * tp) / len(labels), 1.0
            ),
        },
    )  # fmt: skip


@exercise("10.2")
def check_cheapest_label(fn: Callable, draw: Draw) -> None:
    """Exercise 10.2: fn(probabilities [N, A], costs [A, A]) -> the label with the lowest expected cost, [N] long."""
    p = [(row / row.sum()).tolist() for row in draw.rand(draw.size(5), 3)]
    costs = [
        [0.0 if a == y else 1.0 + c for a, c in enumerate(row)] for y, row in enumerate(draw.integers(9, 3, 3).tolist())
    ]
    # costs[y][a]: price of saying a where y is true

    def table(price: Callable[[list[float], int], float], best: Callable = min) -> Tensor:
        rows = [[price(row, a) for a in range(3)] for row in p]
        redraw_unless(all(abs(x - best(row)) > 0.01 for row in rows for x in row if x != best(row)))
        return torch.tensor([row.index(best(row)) for row in rows])

    verdict(
        fn,
        (draw.tensor(p), draw.tensor(costs)),
        table(lambda row, a: sum(row[y] * costs[y][a] for y in range(3))),
        {
            "the costs are ignored: this is the likeliest label": table(lambda row, a: row[a], max),
            "the table is read the wrong way round: its rows are the true labels, its columns what is said": table(
                lambda row, a: sum(row[y] * costs[a][y] for y in range(3))
            ),
            "this is the dearest label: costs are to be small": table(
                lambda row, a: sum(row[y] * costs[y][a] for y in range(3)), max
            ),
            "the probabilities are ignored: the same label for every text": table(
                lambda row, a: sum(costs[y][a] for y in range(3))
            ),
        },
        kind="integer",
    )


@exercise("10.3")
def check_logged_value(fn: Callable, draw: Draw) -> None:
    """Exercise 10.3: fn(logits [B, A], actions [B], rewards [B], propensities [B]) -> self-normalised value, scalar."""
    logits = draw.randn(draw.size(5), 3)
    B, actions = len(logits), draw.integers(3, len(logits)).tolist()
    rewards, mu = draw.rand(B).tolist(), draw.rand(B, low=0.1, high=0.8).tolist()
    pi = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()]
    chosen = [row[a] for row, a in zip(pi, actions)]

    def value(weights: list[float], over: float | None = None) -> Tensor:
        over = sum(weights) if over is None else over
        redraw_unless(abs(over) > 0.5)  # no division by almost 0
        return torch.tensor(sum(w * r for w, r in zip(weights, rewards)) / over)

    weights = [p / m for p, m in zip(chosen, mu)]
    verdict(
        fn,
        (logits, torch.tensor(actions), draw.tensor(rewards), draw.tensor(mu)),
        value(weights),
        {
            "this is the mean of the logged rewards: what the old policy earned, not the new one": value([1.0] * B),
            "divided by the number of rows: that is the plain estimate; divide by the sum of the weights": value(
                weights, float(B)
            ),
            "the new policy is missing: a weight is pi / propensity, not 1 / propensity. (Or it was lost: a [B, 1] met "
            "a [B] and made a [B, B].)": value([1 / m for m in mu]),
            "these are logits in the weights: the softmax is missing": value(
                [row[a] / m for row, a, m in zip(logits.tolist(), actions, mu)]
            ),
            "the weights are upside down: pi stands above, the propensity below": value(
                [m / p for p, m in zip(chosen, mu)]
            ),
            "the propensities are missing: what was shown often counts too much": value(chosen),
            "these are log-probabilities in the weights: exponentiate": value(
                [math.log(p) / m for p, m in zip(chosen, mu)]
            ),
        },
    )


@exercise("10.4")
def check_paid_choice(fn: Callable, draw: Draw) -> None:
    """Exercise 10.4: fn(logits [B, A], actions [B], labels [B]) -> REINFORCE's loss for the reward 1/0, a scalar."""
    B = draw.size(6)
    logits, actions, labels = draw.randn(B, 3), draw.integers(3, B).tolist(), draw.integers(3, B).tolist()
    log_pi = [[x - math.log(sum(map(math.exp, row))) for x in row] for row in logits.tolist()]
    rewards = [float(a == y) for a, y in zip(actions, labels)]
    others = [(sum(rewards) - r) / (B - 1) for r in rewards]

    def loss(factor: Callable[[int], float], baseline: list[float]) -> Tensor:
        return torch.tensor(-sum(factor(b) * (rewards[b] - baseline[b]) for b in range(B)) / B)

    cross_entropy = torch.tensor(-sum(row[y] for row, y in zip(log_pi, labels)) / B)
    right = loss(lambda b: log_pi[b][actions[b]], others)
    verdict(
        fn,
        (logits.requires_grad_(), torch.tensor(actions), torch.tensor(labels)),
        right,
        {
            "this is the log-probability of the true label: the choice that was paid is the action": loss(
                lambda b: log_pi[b][labels[b]], others
            ),
            "this is cross-entropy: it is told the label, and never looks at the reward": cross_entropy,
            "this is cross-entropy with its sign turned: it learns to be wrong": -cross_entropy,
            "the sign is flipped: minimised, this makes well-paid choices rarer": -right,
            "the baseline holds the row's own reward: take the mean of the others": loss(
                lambda b: log_pi[b][actions[b]], [sum(rewards) / B] * B
            ),
            "there is no baseline: subtract the mean reward of the other rows": loss(
                lambda b: log_pi[b][actions[b]], [0.0] * B
            ),
            "this is 0 for any policy: a [B, 1] met a [B] and made a [B, B], so that every choice got every row's "
            "advantage": torch.tensor(0.0),
            "these are probabilities: the logarithm is missing": loss(
                lambda b: math.exp(log_pi[b][actions[b]]), others
            ),
        },
    )
