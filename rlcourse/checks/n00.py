"""Checks for notebook 00."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, redraw_unless, verdict


@exercise("00.1")
def check_expected_reward(fn: Callable, draw: Draw) -> None:
    """Exercise 00.1: fn(logits [B, V], rewards [B, V]) -> the expected reward of one action in each state [B]."""
    B = draw.size(3)
    logits, rewards = draw.randn(B, 4), 2 * draw.randn(B, 4)

    def table(weights: Callable[[list[float]], list[float]]) -> Tensor:
        rows = zip(logits.tolist(), rewards.tolist())
        return torch.tensor([sum(w * r for w, r in zip(weights(z), row)) for z, row in rows])

    columns = torch.tensor([_softmax(column) for column in logits.T.tolist()]).T
    verdict(
        fn,
        (logits, rewards),
        table(_softmax),
        {
            "every action weighs the same: weigh each reward by the probability of its action": table(
                lambda z: [1 / len(z)] * len(z)
            ),
            "divided by the number of actions as well: the probabilities are the weights of the mean already": table(
                lambda z: [p / len(z) for p in _softmax(z)]
            ),
            "only the likeliest action counts in yours: an expectation is over all of them": table(
                lambda z: [float(x == max(z)) for x in z]
            ),
            "these weights are logits: they may be negative, and only a softmax makes them probabilities": table(list),
            "the weights do not sum to 1: after exp, divide by the sum": table(lambda z: [math.exp(x) for x in z]),
            "these weights are log-probabilities: take exp of them": table(
                lambda z: [math.log(p) for p in _softmax(z)]
            ),
            "the softmax runs over the states (dim 0): it is the actions of one state that compete": torch.stack(
                [sum(w * r for w, r in zip(ws, rs)) for ws, rs in zip(columns, rewards)]
            ),
        },
    )


@exercise("00.2")
def check_negative_log_likelihood(fn: Callable, draw: Draw) -> None:
    """Exercise 00.2: fn(logprobs [B, T], mask [B, T]) -> the cross-entropy loss, a scalar in nats per token."""
    mask, lengths = draw.prefixes(4, 2, 1)
    logprobs = -draw.randn(*mask.shape).abs() - 0.1
    rows = [row[:n] for row, n in zip(logprobs.tolist(), lengths)]
    total, count = -sum(map(sum, rows)), sum(lengths)
    right = total / count
    numbers = {
        "the sign is flipped: a log-probability is below 0, and a loss is made small": -right,
        "the mask is ignored: what stands after the end of a text takes part": -logprobs.mean().item(),
        "divided by all positions, masked ones too: divide by the number that counts": total / mask.numel(),
        "this is a mean of the texts' means, so a token of a short text weighs more": -sum(
            sum(row) / len(row) for row in rows
        )
        / len(rows),
        "this is a sum: it grows with the amount of text": total,
        "divided by the number of texts: that is nats per text, asked for are nats per token": total / len(rows),
        "this is the perplexity, exp of the loss": math.exp(right),
        "these are probabilities: the logarithm is gone": -sum(math.exp(x) for row in rows for x in row) / count,
    }
    arguments = (logprobs.requires_grad_(), mask)
    verdict(fn, arguments, torch.tensor(right), {k: torch.tensor(v) for k, v in numbers.items()})


@exercise("00.3")
def check_chosen_logprobs(fn: Callable, draw: Draw) -> None:
    """Exercise 00.3: fn(logits [B, T, V], actions [B, T]) -> log-probabilities of the chosen actions [B, T]."""
    B = draw.size(2)
    logits, actions = draw.randn(B, 5, 4), draw.integers(4, B, 5)

    def table(one: Callable[[int, int, int], float]) -> Tensor:
        return torch.tensor([[one(b, t, actions[b, t].item()) for t in range(5)] for b in range(B)])

    def log_pi(b: int, t: int) -> list[float]:
        return [math.log(p) for p in _softmax(logits[b, t].tolist())]

    verdict(
        fn,
        (logits, actions),
        table(lambda b, t, a: log_pi(b, t)[a]),
        {
            "always 0: the log-softmax sees only one number, because gather came first": torch.zeros(B, 5),
            "the softmax runs over time: the V tokens of one position compete, not the T positions": table(
                lambda b, t, a: math.log(_softmax(logits[b, :, a].tolist())[t])
            ),
            "gathered along time (dim 1): the action is a number in the vocabulary, the last dimension": table(
                lambda b, t, a: log_pi(b, a)[0]
            ),
            "these are raw logits, not log-probabilities: there is no log-softmax": table(
                lambda b, t, a: logits[b, t, a].item()
            ),
            "these are probabilities: there is no logarithm": table(lambda b, t, a: math.exp(log_pi(b, t)[a])),
            "this is the likeliest token's log-probability, whatever was chosen": table(
                lambda b, t, a: max(log_pi(b, t))
            ),
            "the sign is flipped: a log-probability is never above 0": table(lambda b, t, a: -log_pi(b, t)[a]),
        },
    )


@exercise("00.4")
def check_bigram_policy(fn: Callable, draw: Draw) -> None:
    """Exercise 00.4: fn(texts [N, T], vocab_size) -> pi [V, V], pi[s, a] = share of a among what followed s."""
    V, texts = 3, draw.integers(3, draw.size(4), 4)
    rows = texts.tolist()
    inside = [pair for row in rows for pair in pairwise(row)]
    flat = [token for row in rows for token in row]
    redraw_unless({s for s, _ in inside} == {a for _, a in inside} == set(range(V)))  # no row, no column without a pair

    def counts(pairs: list[tuple[int, int]]) -> Tensor:
        return torch.tensor([[float(pairs.count((s, a))) for a in range(V)] for s in range(V)])

    def shares(pairs: list[tuple[int, int]]) -> Tensor:
        return torch.tensor([[x / sum(row) for x in row] for row in counts(pairs).tolist()])

    verdict(
        fn,
        (texts, V),
        shares(inside),
        {
            "these are counts: divide each row by its sum": counts(inside),
            "divided by the number of all pairs: that is the joint probability P(s, a), not P(a | s)": counts(inside)
            / len(inside),
            "divided by the column's sum: that is P(s | a), the past given the future": shares(
                [(a, s) for s, a in inside]
            ).T,
            "rows and columns are swapped: the row is the state, the column the token that follows": shares(inside).T,
            "broadcast the wrong way: `sum(1)` has shape [V] and divides the columns; keep the dimension": counts(
                inside
            )
            / counts(inside).sum(1),
            "each pair counts once: with tensors as indices, `counts[s, a] += 1` adds a single 1 to a cell": shares(
                sorted(set(inside))
            ),
            "the last token of a text is followed by the first of the next one: texts do not touch": shares(
                list(pairwise(flat))
            ),
            "the text wraps round: nothing follows its last token": shares(
                [pair for row in rows for pair in pairwise(row + row[:1])]
            ),
            "the state is ignored: every row holds the share of a token among all": torch.tensor(
                [[flat.count(a) / len(flat) for a in range(V)]] * V
            ),
        },
    )


def _softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]
