"""Checks for notebook 12."""

import itertools
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, gradients, verdict


@exercise("12.1")
def check_group_advantages(fn: Callable, draw: Draw) -> None:
    """Exercise 12.1: fn(scores [B], group_size) -> (score - mean of its group) / standard deviation over G - 1, [B]."""
    P, G = 3, 4 + draw.more
    level = [draw.integers(5).item() / 2] * G  # a group of equal scores
    rows = draw.shuffled([level, *(2 * draw.randn(2, G)).tolist()])
    scores = draw.tensor(rows).flatten()

    def table(one: Callable[[float, list[float]], float], groups: list[list[float]] = rows) -> Tensor:
        return torch.tensor([one(score, row) for row in groups for score in row])

    def spread(row: list[float]) -> float:
        return statistics.stdev(row) or 1.0  # equal scores: 0 above, anything below

    everything = scores.tolist()
    strided = [everything[i::P] for i in range(P)]
    columns = [[row[k] for row in rows] for k in range(G)]  # the first of every group, the second, ...
    wrong_way = [table(lambda score, c: (score - statistics.fmean(c)) / spread(c), [c]) for c in columns]
    across = torch.empty(P * G)
    for i, row in enumerate(strided):
        across[i::P] = table(lambda score, r: (score - statistics.fmean(r)) / spread(r), [row])
    verdict(
        fn,
        (scores, G),
        table(lambda score, row: (score - statistics.fmean(row)) / spread(row)),
        {
            "the division is missing: this is Dr. GRPO": table(lambda score, row: score - statistics.fmean(row)),
            "this is RLOO: the mean over the others, and no division": table(
                lambda score, row: score - (sum(row) - score) / (G - 1)
            ),
            "divided by the variance: take its square root": table(
                lambda score, row: (score - statistics.fmean(row)) / spread(row) ** 2
            ),
            "the standard deviation is over G here, and (7) has G - 1": table(
                lambda score, row: (score - statistics.fmean(row)) / (statistics.pstdev(row) or 1.0)
            ),
            "one mean and one standard deviation over the whole batch: a group is compared with itself": table(
                lambda score, row: (score - statistics.fmean(everything)) / statistics.stdev(everything)
            ),
            "the mean is that of the group, but the standard deviation that of the batch": table(
                lambda score, row: (score - statistics.fmean(row)) / statistics.stdev(everything)
            ),
            "the groups are taken apart: the members of a group stand side by side": across,
            "the mean and the standard deviation run along the wrong dimension: a row is a group": torch.stack(
                wrong_way, 1
            ).flatten(),
            "the mean is not subtracted": table(lambda score, row: score / spread(row)),
            "the sign is flipped: what scores above its group is good": -table(
                lambda score, row: (score - statistics.fmean(row)) / spread(row)
            ),
            "a group of equal scores gives nan: add something small below, or treat it apart": table(
                lambda score, row: (
                    (score - statistics.fmean(row)) / spread(row) if statistics.stdev(row) else float("nan")
                )
            ),
        },
    )


@exercise("12.2")
def check_best_of_n(fn: Callable, draw: Draw) -> None:
    """Exercise 12.2: fn(probabilities [N], scores [N], n) -> the probabilities of the best of n texts [N]."""
    N, n = draw.size(5), 3 - draw.more
    p = draw.rand(N, low=0.3)
    p, scores = p / p.sum(), draw.tensor(draw.shuffled([2.0, 0.0, 1.0, 1.0, -1.0, 3.0][:N]))  # two are level
    chances, points = p.tolist(), scores.tolist()

    def listed(pick: Callable[[list[int]], dict[int, float]]) -> Tensor:
        """Every draw of n texts; pick says which of them is kept with what probability."""
        result = [0.0] * N
        for draw in itertools.product(range(N), repeat=n):
            for i, share in pick(list(draw)).items():
                result[i] += share * math.prod(chances[k] for k in draw)
        return torch.tensor(result)

    def drawn(draw: list[int], best: Callable = max) -> dict[int, float]:
        winners = [i for i in draw if points[i] == best(points[k] for k in draw)]
        return {i: winners.count(i) / len(winners) for i in winners}

    def by_place(sign: int) -> Callable[[list[int]], dict[int, float]]:
        return lambda draw: {max(draw, key=lambda i: (points[i], sign * i)): 1.0}

    def equal_parts(draw: list[int]) -> dict[int, float]:
        level = [i for i in range(N) if points[i] == max(points[k] for k in draw)]
        return {i: 1 / len(level) for i in level}

    below = [sum(q for q, s in zip(chances, points) if s < own) for own in points]
    upto = [sum(q for q, s in zip(chances, points) if s <= own) for own in points]
    slope = torch.tensor([q * n * f ** (n - 1) for q, f in zip(chances, upto)])
    ties = "F and F_below belong to the score, not to the place after sorting"
    verdict(
        fn,
        (p, scores, n),
        listed(drawn),
        {
            "this is the worst of n": listed(lambda draw: drawn(draw, min)),
            f"of texts of equal score the first in the list wins: {ties}": listed(by_place(-1)),
            f"of texts of equal score the last in the list wins: {ties}": listed(by_place(1)),
            "texts of equal score share equally in yours: the likelier one is drawn more often": listed(equal_parts),
            "each text gets the probability of its whole level: share it out in proportion": torch.tensor(
                [f**n - b**n for f, b in zip(upto, below)]
            ),
            "F^n alone is the probability of 'at most this score': subtract that of 'less than this score'": (
                torch.tensor([f**n for f in upto])
            ),
            "p * F^n does not sum to 1: equation (5) has a difference above and one below": torch.tensor(
                [q * f**n for q, f in zip(chances, upto)]
            ),
            "the division by F - F_below is missing": torch.tensor(
                [q * (f**n - b**n) for q, f, b in zip(chances, upto, below)]
            ),
            "n * p * F^(n-1) holds only if no two texts score the same and each one is rare": slope,
            "divided so that it sums to 1, but the distribution is another": slope / slope.sum(),
            "this is the probability that the text is among the n, not that it is the best": torch.tensor(
                [1 - (1 - q) ** n for q in chances]
            ),
            "nothing has changed: these are the probabilities of one draw": p,
        },
    )


@exercise("12.3")
def check_ipo_loss(fn: Callable, draw: Draw) -> None:
    """Exercise 12.3: fn(preferred, rejected, ref_preferred, ref_rejected [N], tau) -> the scalar loss."""
    N, tau = draw.size(5), draw.number(0.25, 0.4)
    goal = 1 / (2 * tau)
    w, l, ref_w, ref_l = (-2 - draw.randn(N).abs() for _ in range(4))
    rows = list(zip(*(x.tolist() for x in (w, l, ref_w, ref_l))))

    def mean(one: Callable[[float, float, float, float], float]) -> Tensor:
        return torch.tensor(statistics.fmean(one(*row) for row in rows))

    def gap(a: float, b: float, ra: float, rb: float) -> float:
        return (a - ra) - (b - rb)

    verdict(
        fn,
        (w.requires_grad_(), l.requires_grad_(), ref_w, ref_l, tau),
        mean(lambda *x: (gap(*x) - goal) ** 2),
        {
            "the goal is 1 / (2 tau), not 1 / tau": mean(lambda *x: (gap(*x) - 1 / tau) ** 2),
            "the goal is 1 / (2 tau), not tau / 2": mean(lambda *x: (gap(*x) - tau / 2) ** 2),
            "the goal is 1 / (2 tau), not 2 tau": mean(lambda *x: (gap(*x) - 2 * tau) ** 2),
            "the reference is ignored: the gap is one of log-ratios": mean(lambda a, b, ra, rb: (a - b - goal) ** 2),
            "the reference has the wrong sign: its gap is subtracted": mean(
                lambda a, b, ra, rb: (a - b + ra - rb - goal) ** 2
            ),
            "the two log-ratios are added: the gap is their difference": mean(
                lambda a, b, ra, rb: ((a - ra) + (b - rb) - goal) ** 2
            ),
            "preferred and rejected are swapped": mean(lambda *x: (-gap(*x) - goal) ** 2),
            "the square is missing": mean(lambda *x: gap(*x) - goal),
            "this is the absolute difference, not its square": mean(lambda *x: abs(gap(*x) - goal)),
            "this is DPO: IPO charges a square": mean(lambda *x: math.log1p(math.exp(-tau * gap(*x)))),
            "tau does not multiply the gap as well": mean(lambda *x: (tau * gap(*x) - goal) ** 2),
            "the sum over the pairs, not their mean": N * mean(lambda *x: (gap(*x) - goal) ** 2),
            "averaged first and squared then: square every pair": mean(lambda *x: gap(*x) - goal) ** 2,
        },
    )


@exercise("12.4")
def check_priced_loss(fn: Callable, draw: Draw) -> None:
    """Exercise 12.4: fn(logprobs, ref_logprobs, scores [B], kl_coef) -> a loss whose gradient is that of -J_beta.

    Compared is the gradient for each text's log-probability; what the loss itself amounts to does not matter.
    """
    N, beta = draw.size(4), draw.number(0.2, 0.5)
    logprobs, ref_logprobs, scores = -2 - draw.randn(N).abs(), -2 - draw.randn(N).abs(), draw.randn(N)

    def gradient(*args) -> Tensor:
        return gradients(fn, args, of=(0,))[1]

    ratios = (logprobs - ref_logprobs).tolist()
    paid = [score - beta * d for d, score in zip(ratios, scores.tolist())]

    def table(one: Callable[[float, float], float]) -> Tensor:
        return torch.tensor([one(d, score) / N for d, score in zip(ratios, scores.tolist())])

    verdict(
        fn,
        (logprobs, ref_logprobs, scores, beta),
        table(lambda d, score: -(score - beta * d)),
        {
            "this is the bug itself: k1 in the loss pulls at every text alike, and on average not at all": table(
                lambda d, score: -score + beta
            ),
            "this is k3 in the loss: the gradient of the forward KL(ref || pi)": table(
                lambda d, score: -score + beta * (1 - math.exp(-d))
            ),
            "on average this is right, but k1 in the loss is in it too, and adds only noise: leave it out": table(
                lambda d, score: -(score - beta * d) + beta
            ),
            "the texts are sampled already: do not multiply by their probability as well": table(
                lambda d, score: -(score - beta * d)
            )
            * logprobs.exp(),
            "the price is not there: a score alone": table(lambda d, score: -score),
            "the sign of the price is flipped: leaving the reference is rewarded": table(
                lambda d, score: -(score + beta * d)
            ),
            "the sign of the whole is flipped: a loss is minimised": table(lambda d, score: score - beta * d),
            "the price carries gradient: (score - kl_coef * log-ratio) has to be detached": table(
                lambda d, score: -(score - beta * d)
            )
            + torch.tensor([beta * x / N for x in logprobs.tolist()]),
            "the sum over the texts, not their mean": N * table(lambda d, score: -(score - beta * d)),
            "each text pays its own log-ratio, not the mean of the batch": table(
                lambda d, score: -(score - beta * statistics.fmean(ratios))
            ),
            "the task asks for no baseline": torch.tensor([(statistics.fmean(paid) - x) / N for x in paid]),
            "kl_coef is ignored: the whole log-ratio is paid": table(lambda d, score: -(score - d)),
            "k2 without its half: the price is paid twice": table(lambda d, score: -(score - 2 * beta * d)),
        },
        view=gradient,
        tell=lambda right, answer: f"gradient on logprobs: expected\n{right}\ngot\n{answer}",
    )
