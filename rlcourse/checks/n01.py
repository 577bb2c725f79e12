"""Checks for notebook 01."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, demand, exercise, redraw_unless, verdict


@exercise("01.1")
def check_expected_return(fn: Callable, draw: Draw) -> None:
    """Exercise 01.1: fn(pi, mask, rewards), all [N, T], of every text of a small world -> J, a scalar tensor."""
    first, *second = draw.randn(3, 3).softmax(1).tolist()  # pi(a), then pi(b | a); token 2 is the end
    pay_first, *pay_second = (2 * draw.randn(3, 3)).tolist()
    J = 0.0  # backwards through the tree, without any text's probability
    for a in range(3):
        J += first[a] * pay_first[a]
        if a < 2:
            J += first[a] * sum(p * r for p, r in zip(second[a], pay_second[a]))
    texts = draw.shuffled([(a, b) for a in range(2) for b in range(3)] + [(2, None)])
    garbage = draw.number(0.2, 0.8), draw.number(3, 7)  # what stands after the end
    pi = draw.tensor([[first[a], garbage[0] if b is None else second[a][b]] for a, b in texts])
    rewards = draw.tensor([[pay_first[a], garbage[1] if b is None else pay_second[a][b]] for a, b in texts])
    mask = draw.tensor([[1.0, float(b is not None)] for _, b in texts])

    def total(weigh: Callable, worth: Callable = sum, masked: tuple[bool, bool] = (True, True)) -> Tensor:
        result = 0.0
        for row_p, row_r, (_, b) in zip(pi.tolist(), rewards.tolist(), texts):
            ends = [1 if b is None and hidden else 2 for hidden in masked]
            result += weigh(row_p[: ends[0]]) * worth(row_r[: ends[1]])
        return torch.tensor(result)

    own = sum(pi[n, t] * rewards[n, t] for n in range(len(texts)) for t in (0, 1) if mask[n, t])
    so_far = sum(first[a] * pay_first[a] for a, _ in texts)  # a first reward once in each text that begins with it
    so_far += sum(first[a] * second[a][b] * pay_second[a][b] for a, b in texts if b is not None)
    verdict(
        fn,
        (pi, mask, rewards),
        torch.tensor(J),
        {
            "this is a plain mean over the list of texts: weigh each text by its probability": total(lambda p: 1.0)
            / len(texts),
            "divided by the number of texts: the probabilities sum to 1 and are weights enough": torch.tensor(J)
            / len(texts),
            "the probabilities of a text's actions are multiplied, not added": total(sum),
            "this adds log-probabilities: exponentiate the sum before you weigh with it": total(
                lambda p: sum(math.log(x) for x in p)
            ),
            "the rewards of a text are added, not multiplied": total(math.prod, math.prod),
            "the mask is ignored: what stands after the end is neither chosen nor paid": total(
                math.prod, masked=(False, False)
            ),
            "the mask is not applied to the probabilities: an action that was not chosen has factor 1": total(
                math.prod, masked=(False, True)
            ),
            "the mask is not applied to the rewards: nothing is paid after the end": total(
                math.prod, masked=(True, False)
            ),
            "masked probabilities were set to 0, and so was every text that ended early: they must be 1": total(
                lambda p: math.prod(p) if len(p) == 2 else 0.0
            ),
            "the products run over the texts (dimension 0): multiply along each text (dimension 1)": torch.tensor(
                sum(math.prod(pi[mask[:, t] > 0, t].tolist()) * (rewards * mask)[:, t].sum().item() for t in (0, 1))
            ),
            "each reward is weighed by its own action's probability alone: the actions before it must happen too": own,
            "a reward is weighed by the actions up to it, and so counted again in every text that begins alike: weigh "
            "it by the whole text's probability": torch.tensor(so_far),
        },
    )


@exercise("01.2")
def check_softmax_score(fn: Callable, draw: Draw) -> None:
    """Exercise 01.2: fn(logits [B, V], actions [B]) -> d log pi(a) / d logits [B, V]."""
    B = draw.size(3)
    logits, actions = draw.randn(B, 4), draw.integers(4, B)
    redraw_unless((actions == 3).any())

    def slopes(function: Callable[[list[float], int], float], actions: Tensor = actions) -> Tensor:
        """By central differences, one logit at a time."""
        result, h = torch.zeros(B, 4), 1e-5
        for b, (row, a) in enumerate(zip(logits.tolist(), actions.tolist())):
            for v in range(4):
                up, down = ([x + step * (i == v) for i, x in enumerate(row)] for step in (h, -h))
                result[b, v] = (function(up, a) - function(down, a)) / (2 * h)
        return result

    def probability(row: list[float], a: int) -> float:
        return math.exp(row[a]) / sum(map(math.exp, row))

    def log_probability(row: list[float], a: int) -> float:
        return math.log(probability(row, a))

    right = slopes(log_probability)
    pi = torch.tensor([[probability(row, v) for v in range(4)] for row in logits.tolist()])
    raw = slopes(lambda row, a: row[a])
    columns = [[math.exp(x) for x in column] for column in logits.T.tolist()]
    over_rows = torch.tensor([[column[b] / sum(column) for column in columns] for b in range(B)])
    verdict(
        fn,
        (logits, actions),
        right,
        {
            "the sign is flipped: raising the chosen logit raises log pi(a); yours is the gradient of a loss": -right,
            "the normaliser is forgotten: log pi(a) is z_a minus a log-sum, and the log-sum has a slope too": raw,
            "the chosen action is missing: its logit also enters by itself": -pi,
            "this is the gradient of pi(a), not of log pi(a)": slopes(probability),
            "the softmax runs over the batch: it belongs over the vocabulary": raw - over_rows,
            "a uniform policy is subtracted: it must be this policy's own probabilities": raw - 0.25,
            "the logits are subtracted: they must be turned into probabilities first": raw - logits,
            "log-probabilities are subtracted: it must be the probabilities": raw - pi.log(),
            "only the chosen logit has a slope here: the others enter through the normaliser, with -pi(v)": raw * right,
            "this is d log pi / d pi: go on to the logits, by the chain rule through the softmax": raw / pi,
            "divided by the number of rows: each row is a gradient of its own, no part of a mean": right / B,
        },
    )
    low = actions % 3
    demand(
        fn,
        (logits, low),
        slopes(log_probability, low),
        "one_hot needs the vocabulary size: it took the largest token of the batch",
    )


@exercise("01.3")
def check_gradient_estimates(fn: Callable, draw: Draw) -> None:
    """Exercise 01.3: fn(scores [N, T, D], rewards [N, T], mask [N, T]) -> an estimate of grad J per row [N, D]."""
    mask, lengths = draw.prefixes(5, 2, 1)
    scores, rewards = draw.randn(*mask.shape, 2), draw.randn(*mask.shape)

    def table(
        weigh: Callable[[list[float], int], float],
        reads: Callable[[int], int] = lambda n: n,
        acts: Callable[[int], int] = lambda n: n,
        divisor: Callable[[int], float] = lambda n: 1.0,
    ) -> Tensor:
        result = torch.zeros(len(lengths), 2)
        for i, n in enumerate(lengths):
            paid = rewards[i, : reads(n)].tolist()
            for t in range(acts(n)):
                result[i] += scores[i, t] * weigh(paid, t) / divisor(n)
        return result

    def to_go(paid: list[float], t: int) -> float:
        return sum(paid[t:])

    verdict(
        fn,
        (scores, rewards, mask),
        table(to_go),
        {
            "this is the total return: right on average, but every action is also credited with the past": table(
                lambda paid, t: sum(paid)
            ),
            "the running sum goes the wrong way: it adds up the past instead of what is to come": table(
                lambda paid, t: sum(paid[: t + 1])
            ),
            "the reward-to-go starts one step too late: r_t is paid for action t and belongs to it": table(
                lambda paid, t: sum(paid[t + 1 :])
            ),
            "the sums are still backwards: flip them back after the running sum": table(
                lambda paid, t: sum((paid + [0.0] * (5 - len(paid)))[4 - t :])
            ),
            "only the reward of the same step is used: an action is also answerable for what comes later": table(
                lambda paid, t: paid[t]
            ),
            "the sign is flipped: this is the gradient of a loss, the estimate points uphill": -table(to_go),
            "this is a mean over a text's actions: the theorem has a sum": table(to_go, divisor=lambda n: n),
            "this is a mean over all T columns: the theorem has a sum": table(to_go, divisor=lambda n: 5),
            "divided by the number of texts: one estimate for each row, no mean over them": table(to_go) / len(lengths),
            "the mask is ignored: neither scores nor rewards after the end count": table(
                to_go, lambda n: 5, lambda n: 5
            ),
            "the mask is not applied to the rewards: what stands after the end leaks back": table(to_go, lambda n: 5),
        },
    )


@exercise("01.4")
def check_bandit_gradient(fn: Callable, draw: Draw) -> None:
    """Exercise 01.4: fn(logits [V], actions [B], rewards [B]) -> estimate of grad J from these samples [V]."""
    B = draw.size(5)
    logits, actions, rewards = draw.randn(4), draw.integers(4, B), draw.randn(B) + 1
    z = sum(map(math.exp, logits.tolist()))
    pi = [math.exp(x) / z for x in logits.tolist()]
    samples = list(zip(actions.tolist(), rewards.tolist()))

    def average(one: Callable[[int, float, int], float]) -> Tensor:
        return torch.tensor([sum(one(a, r, v) for a, r in samples) / B for v in range(4)])

    weighed = sum(r * pi[a] for a, r in samples) / B
    redraw_unless(abs(weighed) > 0.1)  # one mistake divides by it
    right, mean = average(lambda a, r, v: r * ((a == v) - pi[v])), sum(r for _, r in samples) / B
    verdict(
        fn,
        (logits, actions, rewards),
        right,
        {
            "pi is still differentiated, not log pi: likely actions are sampled often and then weighed by pi again": (
                average(lambda a, r, v: r * pi[a] * ((a == v) - pi[v]))
            ),
            "the sign is flipped: this is the gradient of a loss, the estimate points uphill": -right,
            "this is the sum over the samples: an expectation is estimated by their mean": right * B,
            "the log-probabilities of all actions are pushed, not that of the sampled one": average(
                lambda a, r, v: r * (1 - 4 * pi[v])
            ),
            "the normaliser is forgotten: this differentiates the chosen logit, not its log-probability": average(
                lambda a, r, v: r * (a == v)
            ),
            "the rewards are missing: without them the estimate is 0 on average": average(
                lambda a, r, v: (a == v) - pi[v]
            ),
            "pi was divided by itself, which is 1 whatever the logits are: detach the one below": torch.zeros(4),
            "the batch mean is subtracted from the rewards: it contains the action's own reward, which biases the "
            "estimate (notebook 03)": average(lambda a, r, v: (r - mean) * ((a == v) - pi[v])),
            "the logarithm of the reward-weighted mean was taken: the log belongs on pi(a), inside the mean": average(
                lambda a, r, v: r * pi[a] * ((a == v) - pi[v])
            )
            / weighed,
        },
    )
