"""Checks for notebook 11."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, verdict


@exercise("11.1")
def check_td_targets(fn: Callable, draw: Draw) -> None:
    """Exercise 11.1: fn(rewards [N], next_q [N, V], dones [N], gamma) -> targets [N]."""
    N, gamma = draw.size(5), draw.number(0.7, 0.95)
    rewards, next_q, dones = draw.randn(N), draw.randn(N, 3), draw.tensor(draw.shuffled([0, 1, 0, 0, 1, 0][:N]))

    def table(value: Callable[[list], float], goes_on: Callable[[float], float], pay: float = 1.0, g: float = gamma):
        rows = zip(rewards.tolist(), next_q.tolist(), dones.tolist())
        return torch.tensor([pay * r + g * goes_on(done) * value(row) for r, row, done in rows])

    def alive(done: float) -> float:
        return 1 - done

    over_batch = [max(column) for column in zip(*next_q.tolist())]
    verdict(
        fn,
        (rewards, next_q, dones, gamma),
        table(max, alive),
        {
            "the end is ignored: after a text's last token nothing more is earned": table(max, lambda done: 1.0),
            "dones is inverted: 1 means that the text is over": table(max, lambda done: done),
            "this is the mean over the next tokens: what counts is the best one": table(
                lambda row: sum(row) / 3, alive
            ),
            "gamma is missing: what comes a step later counts gamma times": table(max, alive, g=1.0),
            "the reward of the step itself is missing": table(max, alive, pay=0.0),
            "the reward of a text's last token is lost: where it is done only the future drops out": (
                table(max, alive) * torch.tensor([alive(done) for done in dones.tolist()])
            ),
            "the sign of the future is flipped: it is added to the reward": table(max, alive, g=-gamma),
            "the smallest next value instead of the largest: was there a minus too many?": table(min, alive),
            "this looks for the largest value in the whole batch, not in each row": table(
                lambda row: max(over_batch), alive
            ),
        },
    )


@exercise("11.2")
def check_epsilon_greedy(fn: Callable, draw: Draw) -> None:
    """Exercise 11.2: fn(q [N, V], epsilon) -> probabilities [N, V]; tokens that are equally good share."""
    V, epsilon = 4, draw.number(0.1, 0.3)
    rows = [[1, 3, 2, 0], [2, 2, -1, 0], [0, -1, -2, -3], [1, 1, 1, -2]][: draw.size(3)]
    q = draw.tensor(draw.shuffled([draw.shuffled(row) for row in rows])) * draw.number(0.5, 1)

    def table(best: float, other: float, any_: float, ties: str = "share") -> Tensor:
        rows = []
        for row in q.tolist():
            top = [i for i, x in enumerate(row) if x == max(row)]
            top = top[:1] if ties == "first" else top
            part = 1 if ties == "each" else 1 / len(top)
            rows.append([any_ + (best * part if i in top else other) for i in range(V)])
        return torch.tensor(rows)

    softmax = torch.stack([row.exp() / row.exp().sum() for row in q])
    verdict(
        fn,
        (q, epsilon),
        table(1 - epsilon, 0.0, epsilon / V),
        {
            "the best token is missing among 'any token': exploring draws from all V, the best one too": table(
                1 - epsilon, epsilon / (V - 1), 0.0, "first"
            ),
            "this looks for the largest value in the whole batch, not in each row": torch.stack(
                [(1 - epsilon) * (row == q.max()).float() + epsilon / V for row in q]
            ),
            "of equally good tokens only the first gets the greedy part": table(1 - epsilon, 0.0, epsilon / V, "first"),
            "a row does not sum to 1: equally good tokens must share one greedy part": table(
                1 - epsilon, 0.0, epsilon / V, "each"
            ),
            "epsilon and 1 - epsilon are exchanged": table(epsilon, 0.0, (1 - epsilon) / V),
            "nothing is ever explored: where is epsilon?": table(1.0, 0.0, 0.0),
            "a row does not sum to 1: exploring spreads epsilon over V tokens, epsilon / V each": table(
                1 - epsilon, 0.0, epsilon
            ),
            "the worst token is taken for the best": _greedy_by_loop(-q, epsilon),
            "this is a softmax: it prefers good tokens gradually; epsilon-greedy asks only which is best": softmax,
            "a softmax gives out 1 - epsilon in yours: epsilon-greedy gives it to the best only": (
                (1 - epsilon) * softmax + epsilon / V
            ),
        },
    )


@exercise("11.3")
def check_double_estimate(fn: Callable, draw: Draw) -> None:
    """Exercise 11.3: fn(first [N, V], second [N, V]) -> the first chooses, the second says what it is worth; [N]."""
    N = draw.size(6)
    first, second = draw.randn(N, 4), draw.randn(N, 4)

    def table(choose: Tensor, worth: Tensor) -> Tensor:
        return torch.tensor([row[c.index(max(c))] for c, row in zip(choose.tolist(), worth.tolist())])

    verdict(
        fn,
        (first, second),
        table(first, second),
        {
            "the first set chooses and judges: that is the plain maximum, with its bias": table(first, first),
            "the second set chooses and judges: that is the plain maximum, with its bias": table(second, second),
            "the roles are exchanged: the first set chooses, the second judges": table(second, first),
            "averaging first and then taking the maximum: the same numbers still choose and judge": table(
                first + second, (first + second) / 2
            ),
            "this is the mean of two maxima: both are too large, and so is their mean": (
                table(first, first) + table(second, second)
            )
            / 2,
            "the average chooses: the second set had a say in the choice, so some of the bias stays": table(
                first + second, second
            ),
            "this is the smaller of two maxima: each of them still chooses and judges by the same numbers": (
                torch.minimum(table(first, first), table(second, second))
            ),
            "the worst token was chosen": table(-first, second),
            "these are the numbers of the tokens, not what they are worth": torch.tensor(
                [float(c.index(max(c))) for c in first.tolist()]
            ),
        },
    )


@exercise("11.4")
def check_text_targets(fn: Callable, draw: Draw) -> None:
    """Exercise 11.4: fn(target_q [B, T, V], rewards [B, T], mask [B, T], gamma) -> targets [B, T], 0 where masked."""
    mask, lengths = draw.prefixes(4, 2, 3)
    target_q, rewards, gamma = draw.randn(*mask.shape, 3), draw.randn(*mask.shape), draw.number(0.7, 0.95)

    def table(
        look_at: Callable[[int, int], int | None], masked: bool = True, value: Callable = max, g: float = gamma
    ) -> Tensor:
        rows = torch.zeros(mask.shape)
        for b, n in enumerate(lengths):
            for t in range(n if masked else 4):
                at = look_at(t, n)
                rows[b, t] = rewards[b, t] + (0.0 if at is None else g * value(target_q[b, at].tolist()))
        return rows

    def following(t: int, n: int) -> int | None:
        return t + 1 if t + 1 < n else None

    verdict(
        fn,
        (target_q, rewards, mask, gamma),
        table(following),
        {
            "the last place of a row looks at the first: roll wraps around, and short texts look beyond theirs": table(
                lambda t, n: (t + 1) % 4
            ),
            "the roll is repaired in short texts only: the last place of a full row still looks at the first": table(
                lambda t, n: t + 1 if t + 1 < n else (0 if n == 4 else None)
            ),
            "the roll is repaired in full rows only: a text that ended early still looks behind its end": table(
                lambda t, n: t + 1 if t + 1 < 4 else None
            ),
            "not shifted: this is the value of the state in which the token was chosen, not of the one after it": table(
                lambda t, n: t
            ),
            "shifted the wrong way: the value of the state before": table(lambda t, n: t - 1 if t else None),
            "what is masked must be 0: nothing was chosen there": table(following, masked=False),
            "the mean over the next tokens instead of the best": table(following, value=lambda row: sum(row) / 3),
            "no bootstrap: the value of the next state is missing": table(lambda t, n: None),
            "gamma is missing: what comes a step later counts gamma times": table(following, g=1.0),
            "the reward of the last token is lost: only the future drops out there": table(following)
            * torch.tensor([[float(t + 1 < n) for t in range(4)] for n in lengths]),
        },
    )


def _greedy_by_loop(q: Tensor, epsilon: float) -> Tensor:
    """[N, V], equally good ones share."""
    rows = []
    for row in q.tolist():
        top = row.count(max(row))
        rows.append([epsilon / len(row) + (x == max(row)) * (1 - epsilon) / top for x in row])
    return torch.tensor(rows)
