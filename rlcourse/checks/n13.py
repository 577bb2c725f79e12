"""Checks for notebook 13."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, redraw_unless, verdict


@exercise("13.1")
def check_surprise_gap(fn: Callable, draw: Draw) -> None:
    """Exercise 13.1: fn(logits [B, T, V], actions, mask [B, T]) -> mean surprisal minus mean entropy, a scalar."""
    mask, lengths = draw.prefixes(4, 2, 3)
    logits, actions = 2 * draw.randn(*mask.shape, 5), draw.integers(5, *mask.shape)
    raw = logits.tolist()
    log_pi = [[[x - math.log(sum(map(math.exp, row))) for x in row] for row in text] for text in raw]

    def rows(term: Callable[[int, int], float], masked: bool = True) -> list[list[float]]:
        return [[term(b, t) for t in range(n if masked else 4)] for b, n in enumerate(lengths)]

    def mean(rows: list[list[float]], over: int | None = None) -> Tensor:
        return torch.tensor(sum(map(sum, rows)) / (over or sum(map(len, rows))))

    def surprisal(b: int, t: int) -> float:
        return -log_pi[b][t][actions[b, t]]

    def entropy(b: int, t: int) -> float:
        return -sum(math.exp(x) * x for x in log_pi[b][t])

    gaps = rows(lambda b, t: surprisal(b, t) - entropy(b, t))
    verdict(
        fn,
        (logits, actions, mask),
        mean(gaps),
        {
            "the sign is flipped: surprisal minus entropy": -mean(gaps),
            "the entropy is missing: surprisal alone says nothing": mean(rows(surprisal)),
            "the surprisal is missing: this is minus the entropy": -mean(rows(entropy)),
            "the entropy is added: its sum of p log p is negative already": mean(
                rows(lambda b, t: surprisal(b, t) + entropy(b, t))
            ),
            "the mask is ignored: what stands after the end was not chosen": mean(
                rows(lambda b, t: surprisal(b, t) - entropy(b, t), masked=False)
            ),
            "divided by all positions instead of those that count": mean(gaps, 4 * len(lengths)),
            "a sum where the mean over counted actions was asked for": mean(gaps, 1),
            "a mean of each text's mean: every counted action weighs the same": mean(
                [[sum(row) / len(row)] for row in gaps]
            ),
            "these are raw logits in the surprisal: the log-softmax is missing": mean(
                rows(lambda b, t: -raw[b][t][actions[b, t]] - entropy(b, t))
            ),
        },
    )


@exercise("13.2")
def check_price_paid(fn: Callable, draw: Draw) -> None:
    """Exercise 13.2: fn(scores [B], rewards, log_ratio, mask [B, T]) -> the price of a nat of log-ratio, a scalar."""
    mask, lengths = draw.prefixes(4, 2, 3)
    B, price = len(lengths), draw.number(0.1, 0.9)
    scores, log_ratio = draw.randn(B), draw.randn(*mask.shape) + 0.3
    rewards = -price * log_ratio * mask
    for b, n in enumerate(lengths):
        rewards[b, draw.integers(n).item()] += scores[b]  # somewhere
    lr = [log_ratio[b, :n].sum().item() for b, n in enumerate(lengths)]
    paid = [rewards[b, :n].sum().item() for b, n in enumerate(lengths)]
    score = scores.tolist()
    redraw_unless(all(abs(x) > 0.1 for x in lr) and abs(sum(lr)) > 0.5 and abs(log_ratio.sum()) > 0.5)
    last = torch.tensor(sum((scores[b] - rewards[b, n - 1]).item() for b, n in enumerate(lengths)))
    ends = [[score[b] * (t == n - 1) - rewards[b, t].item() for t in range(n)] for b, n in enumerate(lengths)]
    cells = [(x, y) for b, n in enumerate(lengths) for x, y in zip(log_ratio[b, :n].tolist(), ends[b])]
    at_the_end = torch.tensor(sum(x * y for x, y in cells) / sum(x * x for x, _ in cells))
    verdict(
        fn,
        (scores, rewards, log_ratio, mask),
        torch.tensor(price),
        {
            "the sign is flipped: a price is positive when leaving the reference costs": torch.tensor(-price),
            "the quotient is upside down: score units for a nat": torch.tensor(1 / price),
            "the scores are still in it: subtract them, what is left was paid for KL": torch.tensor(
                -sum(paid) / sum(lr)
            ),
            "the mask is ignored in the log-ratio: what stands after the end has none": torch.tensor(
                (sum(score) - sum(paid)) / log_ratio.sum().item()
            ),
            "this is the pay for KL, not its price: divide by the log-ratio": torch.tensor(sum(score) - sum(paid)),
            "divided by the number of actions: the price is for a nat": torch.tensor(
                (sum(score) - sum(paid)) / sum(lengths)
            ),
            "you assume that each score is paid at the end: it may be paid anywhere": at_the_end,
            "only the last actions are read, against the log-ratio of all: KL is charged at every action": last
            / sum(lr),
        },
    )


@exercise("13.3")
def check_whitened(fn: Callable, draw: Draw) -> None:
    """Exercise 13.3: fn(advantages, mask), both [B, T] -> whitened over the counted actions [B, T], 0 where masked."""
    mask, lengths = draw.prefixes(5, 2, 3)
    advantages = 2 * draw.randn(*mask.shape) + 1
    rows = [row[:n] for row, n in zip(advantages.tolist(), lengths)]
    every = [x for row in rows for x in row]
    masked = [x for row, n in zip(advantages.tolist(), lengths) for x in row[:n] + [0.0] * (5 - n)]

    def spread(xs: list[float], correction: int = 0) -> float:
        mean = sum(xs) / len(xs)
        return math.sqrt(sum((x - mean) ** 2 for x in xs) / (len(xs) - correction))

    def table(shift: float, scale: float, padding: Callable[[float], float] = lambda x: 0.0) -> Tensor:
        cells = advantages.tolist()
        return torch.tensor(
            [
                [(x - shift) / scale if t < n else padding(x) for t, x in enumerate(row)]
                for row, n in zip(cells, lengths)
            ]
        )

    def by_row() -> Tensor:
        found = torch.zeros(mask.shape)
        for b, row in enumerate(rows):
            for t, x in enumerate(row):
                found[b, t] = (x - sum(row) / len(row)) / spread(row)
        return found

    mean, scale, whole = sum(every) / len(every), spread(every), advantages.flatten().tolist()
    shifted = sum(masked) / len(masked)
    verdict(
        fn,
        (advantages, mask),
        table(mean, scale),
        {
            "mean and spread run over the padding too: take what counts": table(sum(whole) / len(whole), spread(whole)),
            "mean and spread run over the padding too, with n - 1": table(sum(whole) / len(whole), spread(whole, 1)),
            "mean and spread count the zeros behind the ends: pick before you average": table(shifted, spread(masked)),
            "mean and spread count the zeros behind the ends, with n - 1": table(shifted, spread(masked, 1)),
            "0 where masked: nothing was chosen there": table(mean, scale, lambda x: (x - mean) / scale),
            "0 where masked: the mean was subtracted from the padding": table(mean, scale, lambda x: -mean / scale),
            "divided by the variance: take its square root": table(mean, scale**2),
            "the mean is not subtracted": table(0.0, scale),
            "only the mean is subtracted: divide by the standard deviation": table(mean, 1.0),
            "the variance is that of a sample here: divide by n, not n - 1": table(mean, spread(every, 1)),
            "each text is whitened by itself: the batch is whitened as a whole": by_row(),
            "the mean is right, the spread runs over the padding too: both come from what counts": table(
                mean, spread(whole)
            ),
            "the mean is right, the spread runs over the padding too, with n - 1": table(mean, spread(whole, 1)),
            "the sign is flipped": -table(mean, scale),
        },
    )


@exercise("13.4")
def check_alarms(fn: Callable, draw: Draw) -> None:
    """Exercise 13.4: fn(kl [N], limit, patience) -> [N], 1.0 where this and the patience - 1 before are above limit."""
    patience, limit, N = 3 + draw.more, 6.0, 16
    kl = limit + draw.randn(N).sign() * draw.rand(N, low=0.5, high=3.0)
    start = 5 + draw.integers(3).item()
    kl[start : start + patience + 1] = limit + draw.rand(patience + 1, low=0.5, high=3.0)
    kl[0], kl[start - 1] = limit + 1, limit  # above at once; at the limit, which is not above it
    x = kl.tolist()

    def table(alarm: Callable[[int], bool]) -> Tensor:
        return torch.tensor([float(alarm(i)) for i in range(N)])

    def window(i: int, n: int = patience) -> list[float]:
        return x[max(0, i - n + 1) : i + 1]

    def full(i: int, n: int) -> bool:
        return i + 1 >= n and min(window(i, n)) > limit

    seen, rings, run = table(lambda i: full(i, patience)).tolist(), [], 0
    for kl_now in x:
        run = run % patience + 1 if kl_now > limit else 0
        rings.append(float(run == patience))
    verdict(
        fn,
        (kl, limit, patience),
        table(lambda i: full(i, patience)),
        {
            "one iteration above the limit is not an alarm: patience asks for several in a row": table(
                lambda i: x[i] > limit
            ),
            "one too few in a row": table(lambda i: full(i, patience - 1)),
            "one too many in a row": table(lambda i: full(i, patience + 1)),
            "the future is not known yet: look at this iteration and those before": table(
                lambda i: i + patience <= N and min(x[i : i + patience]) > limit
            ),
            "any instead of all: every one of them must be above": table(
                lambda i: i + 1 >= patience and max(window(i)) > limit
            ),
            "the mean of the window is above, not each of its iterations": table(
                lambda i: i + 1 >= patience and sum(window(i)) / patience > limit
            ),
            "the wrong side: these are below the limit": table(lambda i: i + 1 >= patience and max(window(i)) < limit),
            "0 and 1 are swapped: 1 is the alarm": table(lambda i: not full(i, patience)),
            "at the limit is not above it": table(lambda i: i + 1 >= patience and min(window(i)) >= limit),
            "before there are `patience` iterations it stays silent": table(lambda i: min(window(i)) > limit),
            "the counter is never set back: the iterations must be in a row": table(
                lambda i: sum(y > limit for y in x[: i + 1]) >= patience
            ),
            "after an alarm yours counts from 0 again: it rings as long as the KL stays above": torch.tensor(rings),
            "once an alarm, always an alarm in yours: it ends when the KL comes back": table(
                lambda i: max(seen[: i + 1]) > 0
            ),
        },
    )
