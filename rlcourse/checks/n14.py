"""Checks for notebook 14."""

import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.asked import fail
from rlcourse.checks.verdict import Draw, demand, exercise, redraw_unless, verdict


@exercise("14.1")
def check_memory(fn: Callable, draw: Draw) -> None:
    """Exercise 14.1: fn(parameters, adapters [N]) -> bytes of weights, gradients, moments and reference, [N, 4]."""
    N = draw.size(4)
    P, A = (500 + draw.integers(1500, N)).tolist(), draw.shuffled([0, 0, *(150 + draw.integers(150, N - 2)).tolist()])

    def trained(p: int, a: int) -> int:
        return a or p

    def table(one: Callable[[int, int], tuple], **other: Callable[[int, int], float]) -> Tensor:
        """Bytes; `other` replaces a column, told in numbers."""
        names = ("weights", "gradients", "moments", "reference")
        rows = [[other.get(n, lambda *_, x=x: x)(p, a) for n, x in zip(names, one(p, a))] for p, a in zip(P, A)]
        return 4.0 * torch.tensor(rows)

    def numbers(p: int, a: int) -> tuple:
        return p + a, trained(p, a), 2 * trained(p, a), 0 if a else p

    right = table(numbers)
    verdict(
        fn,
        (torch.tensor(P), torch.tensor(A)),
        right,
        {
            "the reference is forgotten: where all weights train it is a second copy": table(
                numbers, reference=lambda p, a: 0
            ),
            "a reference is counted with adapters too: there it is the same model, its adapters off": table(
                numbers, reference=lambda p, a: p
            ),
            "the reference is the wrong way round: the copy is needed where all weights train": table(
                numbers, reference=lambda p, a: p if a else 0
            ),
            "one moment only: AdamW keeps two for each number that it trains": table(numbers, moments=trained),
            "the moments hold the gradient as well: it has a column of its own": table(
                numbers, moments=lambda p, a: 3 * trained(p, a)
            ),
            "the gradients are forgotten: one number for each that trains": table(numbers, gradients=lambda p, a: 0),
            "gradients for frozen weights: only what trains gets one": table(numbers, gradients=lambda p, a: p + a),
            "moments for frozen weights: AdamW only sees what trains": table(numbers, moments=lambda p, a: 2 * (p + a)),
            "gradients and moments for frozen weights: only what trains has any": table(
                numbers, gradients=lambda p, a: p + a, moments=lambda p, a: 2 * (p + a)
            ),
            "gradients and moments for the model, none for its adapters: it is the adapters that train": table(
                numbers, gradients=lambda p, a: p, moments=lambda p, a: 2 * p
            ),
            "the adapters' own weights are forgotten": table(numbers, weights=lambda p, a: p),
            "only the adapters' weights are counted: the frozen model is still in memory": table(
                numbers, weights=trained
            ),
            "these are numbers, not bytes: in float32 each takes four": right / 4,
            "these are bits: a byte has eight": right * 8,
            "two bytes a number: float32 takes four": right / 2,
            "these are gigabytes: bytes were asked for": right / 1e9,
            "gradients and moments have changed places: the second column is that of the gradients": right[
                :, [0, 2, 1, 3]
            ],
        },
    )


def _walk(row: list[float], goal: float, none: int = 0) -> int:
    """The word at which a walker who goes along the row has come further than the goal."""
    gone = 0.0
    for word, step in enumerate(row):
        gone += step
        if gone > goal:
            return word
    return none


def _drawn_wrong(p: list[list[float]], u: list[float], right: Tensor) -> dict[str, Tensor]:
    """The mistakes of exercise 14.2. p: [B][V] probabilities, u: [B] uniforms, right: [B] words."""
    B, V = len(p), len(p[0])

    def table(one: Callable[[int], int]) -> Tensor:
        return torch.tensor([one(b) for b in range(B)])

    def order(b: int) -> list[int]:
        return sorted(range(V), key=lambda word: -p[b][word])

    return {
        "the word behind it: the first at which the sum exceeds the uniform": right + 1,
        "the word before it: the sum does not exceed the uniform there yet": right - 1,
        "a word of probability 0: where the uniform is 0, the sum must *exceed* it": table(
            lambda b: _walk(p[b], u[b]) if b else 0
        ),
        "the words are sorted by probability first: sum in the vocabulary's order, which no rounding changes": (
            table(lambda b: order(b)[_walk(sorted(p[b], reverse=True), u[b])])
        ),
        "this is a place among the sorted words, not a word": table(lambda b: _walk(sorted(p[b], reverse=True), u[b])),
        "always word 0: log-probabilities are negative and sum to nothing above the uniform; exp comes first": (
            torch.zeros(B)
        ),
        "always V, which is no word: log-probabilities sum to nothing above the uniform; exp comes first": (
            torch.full((B,), float(V))
        ),
        "always the last word: log-probabilities sum to nothing above the uniform; exp comes first": (
            torch.full((B,), V - 1.0)
        ),
        "one uniform for all rows: each row has its own": table(lambda b: _walk(p[b], u[0])),
        "the uniforms are ignored: this is the likeliest word": table(lambda b: order(b)[0]),
        "counted from the end: the sum begins at word 0": table(lambda b: V - 1 - _walk(p[b][::-1], u[b])),
        "the uniform is compared with each word's own probability: sum them up first": table(
            lambda b: next((k for k in range(V) if p[b][k] > u[b]), 0)
        ),
        "the sum runs down the batch: it runs along the vocabulary": table(
            lambda b: next((k for k in range(V) if sum(row[k] for row in p[: b + 1]) > u[b]), 0)
        ),
    }


@exercise("14.2")
def check_draw(fn: Callable, draw: Draw) -> None:
    """Exercise 14.2: fn(logprobs [B, V], uniforms [B]) -> the first word whose summed probability exceeds it, [B]."""
    B, V = draw.size(7), 6
    logits = 1.5 * draw.randn(B, V)
    logits[0, 0] = -math.inf  # word 0 is impossible here, and the uniform is exactly 0
    logprobs, uniforms = logits.log_softmax(-1), draw.rand(B, low=0.05, high=0.95)
    uniforms[0] = 0.0
    p, u = logprobs.exp().tolist(), uniforms.tolist()

    right = torch.tensor([_walk(p[b], u[b]) for b in range(B)])
    sums = [[sum(row[: k + 1]) for k in range(V - 1)] for row in p]
    redraw_unless(all(abs(s - u[b]) > 5e-3 for b in range(1, B) for s in [*sums[b], *(1 - x for x in sums[b])]))

    dtypes = set()

    def same_again(*args) -> object:
        answers = [fn(*args) for _ in range(4)]
        if isinstance(answers[0], Tensor) and not all(
            isinstance(x, Tensor) and torch.equal(x.nan_to_num(), answers[0].nan_to_num()) for x in answers
        ):
            fail("asked twice, yours gives different words: all chance is in `uniforms`, draw no numbers of your own")
        dtypes.add(getattr(answers[0], "dtype", None))
        return answers[0]

    verdict(
        fn,
        (logprobs, uniforms),
        right,
        _drawn_wrong(p, u, right),
        view=same_again,
    )
    demand(
        fn,
        (draw.tensor([0.3, 0.3, 0.3999]).log()[None], draw.tensor([0.99995])),
        torch.tensor([2]),
        "rounding leaves the sum a little below 1: a uniform above it gets the last word",
    )
    if floats := [x for x in dtypes if x.is_floating_point]:  # the last thing said: not in verdict, before `demand`
        fail(f"the numbers are right, but they must be whole numbers, got {floats[0]}: a word is an index")


@exercise("14.3")
def check_part(fn: Callable, draw: Draw) -> None:
    """Exercise 14.3: fn(x, mask [b, T], counted) -> this process's part of the mean over all processes, a scalar."""
    mask, lengths = draw.prefixes(4, 2, 1)
    x, elsewhere = draw.randn(*mask.shape) + 0.5, 3 + draw.integers(20).item()
    rows = [row[:n] for row, n in zip(x.tolist(), lengths)]
    total, here = math.fsum(map(math.fsum, rows)), sum(lengths)
    everything, counted = math.fsum(map(math.fsum, x.tolist())), here + elsewhere
    right = torch.tensor(total / counted)
    x.requires_grad_()
    verdict(
        fn,
        (x, mask, counted),
        right,
        {
            "this is the mean over this process: divide by what counts in all of them": torch.tensor(total / here),
            "a mean of each row's mean: every counted action weighs the same": torch.tensor(
                statistics.fmean(map(statistics.fmean, rows))
            ),
            "divided by the number of rows": torch.tensor(total / len(rows)),
            "divided by all positions, the padding too": torch.tensor(total / mask.numel()),
            "the sum alone: divide by what counts in all processes": torch.tensor(total),
            "divided twice: the mean over this process, and that by the number of all": torch.tensor(
                total / here / counted
            ),
            "divided by what counts in the other processes: this one belongs to all": torch.tensor(total / elsewhere),
            "the weight is upside down: its share is what counts here over what counts in all": torch.tensor(
                total / here * counted / here
            ),
            "the mask is ignored: the padding is in the sum": torch.tensor(everything / counted),
            "the mask is ignored: this is the mean over everything": torch.tensor(everything / mask.numel()),
            "the mask is the wrong way round: 1 is what counts": torch.tensor((everything - total) / counted),
        },
    )
    padded = torch.where(mask > 0, x.detach(), math.nan).requires_grad_()
    demand(fn, (padded, mask, counted), right, "what stands in the padding leaks, here a nan: 0 times nan is nan")
    nothing = (x.detach().requires_grad_(), torch.zeros_like(mask), elsewhere)
    demand(fn, nothing, torch.tensor(0.0), "a process in which nothing counts must give 0, not nan: others do count")


@exercise("14.4")
def check_pooled(fn: Callable, draw: Draw) -> None:
    """Exercise 14.4: fn(counts, means, variances [W]) -> mean and variance of all numbers together, [2]."""
    lengths = draw.shuffled([2, 9, 4, 6][: draw.size(3)])
    parts = [(1.5 * draw.randn(n) + 2 * draw.randn()).tolist() for n in lengths]
    means, variances = [statistics.fmean(x) for x in parts], [statistics.pvariance(x) for x in parts]
    everything = [x for part in parts for x in part]
    n, mean, variance = len(everything), statistics.fmean(everything), statistics.pvariance(everything)
    within = math.fsum(k * v for k, v in zip(lengths, variances)) / n
    plain, even = statistics.fmean(means), statistics.fmean(variances)
    args = torch.tensor(lengths), draw.tensor(means), draw.tensor(variances)

    def pair(*numbers: float) -> Tensor:
        return torch.tensor(numbers)

    def about(centre: float) -> float:
        return statistics.fmean((x - centre) ** 2 for x in everything)

    verdict(
        fn,
        args,
        pair(mean, variance),
        {
            "plain averages of the processes: a count says how much each weighs": pair(plain, even),
            "plain averages, and the spread between the means: weigh all of it by the counts": pair(
                plain, statistics.pvariance(means) + even
            ),
            "the variance is right, the mean weighs every process the same": pair(plain, variance),
            "the mean is not weighted, and the spread is taken about it": pair(plain, about(plain)),
            "the spread between the means is forgotten: the mean variance is only the part inside": pair(mean, within),
            "the mean is right, the variances weigh the same: weigh them too": pair(mean, even),
            "the mean is right, but in the variance every process weighs the same": pair(
                mean, even + statistics.fmean((m - mean) ** 2 for m in means)
            ),
            "this is only the spread between the means: that inside each process is missing": pair(
                mean, variance - within
            ),
            "the spread between the means is subtracted: it comes on top": pair(mean, 2 * within - variance),
            "divided by n - 1: the variance of all numbers is asked for, divided by n": pair(
                mean, variance * n / (n - 1)
            ),
            "this is the standard deviation: the variance is its square": pair(mean, math.sqrt(variance)),
            "the mean of the squares: the square of the mean has to be subtracted": pair(mean, variance + mean**2),
            "the variances given are squared again: they are variances already": pair(
                mean, variance - within + math.fsum(k * v**2 for k, v in zip(lengths, variances)) / n
            ),
            "the variances given count n - 1 times: they are divided by n already": pair(
                mean, variance - within + math.fsum((k - 1) * v for k, v in zip(lengths, variances)) / n
            ),
            "sums over all numbers, not means": pair(mean * n, variance * n),
            "mean and variance have changed places": pair(variance, mean),
        },
    )
    empty = [torch.cat([x, x.new_tensor([y])]) for x, y in zip(args, (0, math.nan, math.nan))]
    demand(
        fn,
        tuple(empty),
        pair(mean, variance),
        "a process in which nothing counts leaks: its mean and variance are nan, and 0 times nan is nan",
    )
