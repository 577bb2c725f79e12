"""Checks for notebook 04."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, demand, exercise, redraw_unless, verdict


@exercise("04.1")
def check_discounted_reward_to_go(fn: Callable, draw: Draw) -> None:
    """Exercise 04.1: fn(rewards [B, T], mask [B, T], gamma) -> discounted reward-to-go [B, T]."""
    mask, lengths = draw.prefixes(5, 3, 1)
    rewards, gamma = 1 + draw.randn(*mask.shape).abs(), draw.number(0.7, 0.9)

    def table(power: Callable = lambda t, k: k - t, first: Callable = lambda t: t, end=None, g=gamma) -> Tensor:
        r = rewards.tolist()
        rows = [
            [
                sum(g ** power(t, k) * r[b][k] for k in range(first(t), min(end(t), n) if end else n)) if t < n else 0.0
                for t in range(5)
            ]
            for b, n in enumerate(lengths)
        ]
        return torch.tensor(rows)

    unmasked = torch.tensor(
        [[sum(gamma ** (k - t) * rewards[b, k] for k in range(t, 5)) for t in range(5)] for b in range(len(lengths))]
    )
    verdict(
        fn,
        (rewards, mask, gamma),
        table(),
        {
            "this counts gamma from the beginning of the text: a reward is discounted by its distance from the action, "
            "k - t": table(power=lambda t, k: k),
            "this is the total of the text at every action: leave out what was earned before": table(
                power=lambda t, k: k, first=lambda t: 0
            ),
            "this is the undiscounted total at every action: leave out what was earned before, and discount": table(
                first=lambda t: 0, g=1.0
            ),
            "only one step ahead: the sum goes on to the end of the text": table(end=lambda t: t + 2),
            "the sum runs backwards: an action is paid for what comes from it on, not for what came before": table(
                power=lambda t, k: t - k, first=lambda t: 0, end=lambda t: t + 1
            ),
            "the sum runs backwards, with gamma counted from the beginning: an action is paid for what comes from it "
            "on, by its distance": table(power=lambda t, k: k, first=lambda t: 0, end=lambda t: t + 1),
            "the columns run backwards: turn the result round again": table().flip(1),
            "gamma is missing": table(g=1.0),
            "everything is discounted once too often: the action's own reward counts in full": table(
                power=lambda t, k: k - t + 1
            ),
            "the action's own reward is left out: the sum begins at k = t": table(first=lambda t: t + 1),
            "the discount is the wrong way round: the far future counts most": table(power=lambda t, k: 4 - (k - t)),
            "the mask is ignored: rewards after the end leak back into the text": unmasked,
            "rewards after the end leak back into the text; masking the result comes too late": unmasked * mask,
        },
    )


@exercise("04.2")
def check_potential_shaping(fn: Callable, draw: Draw) -> None:
    """Exercise 04.2: fn(rewards, potentials, mask [B, T], gamma) -> shaped rewards [B, T]."""
    mask, lengths = draw.prefixes(5, 3, 1)
    rewards, potentials, gamma = draw.randn(*mask.shape), draw.randn(*mask.shape), draw.number(0.7, 0.95)

    def table(
        ahead: float = gamma,
        back: float = 1.0,
        masked: bool = True,
        wraps: bool = False,
        pays: float = 1.0,
        step: int = 1,
        last: float = 1.0,
    ) -> Tensor:
        result = torch.zeros(mask.shape)
        for b, length in enumerate(lengths):
            end = length if masked else 5
            for t in range(end):
                other = potentials[b, t + step] if 0 <= t + step < end else potentials[b, 0] if wraps else 0.0
                hint = ahead * other - back * potentials[b, t]
                result[b, t] = pays * rewards[b, t] + (last if t + 1 == end else 1.0) * hint
        return result

    phi = potentials * mask
    late = (rewards + gamma * phi - torch.cat([torch.zeros_like(phi[:, :1]), phi[:, :-1]], 1)) * mask
    verdict(
        fn,
        (rewards, potentials, mask, gamma),
        table(),
        {
            "the signs are flipped: reaching a state of high potential is paid, leaving it is charged": table(
                -gamma, -1.0
            ),
            "nothing is paid back: without - Phi(s_t) the hint stays in the total, and the best policy can move": table(
                back=0.0
            ),
            "only the present potential is charged: + gamma * Phi(s_{t+1}) is missing": table(ahead=0.0),
            "gamma is missing before Phi(s_{t+1}): then the hints do not cancel in a discounted sum": table(ahead=1.0),
            "both potentials are discounted: gamma belongs to Phi(s_{t+1}) only": table(back=gamma),
            "the rewards themselves are gone: the hint comes on top of them": table(pays=0.0),
            "potentials after the end leak in: there Phi is 0": table(masked=False) * mask,
            "the mask is ignored: after the end nothing is paid": table(masked=False),
            "this looks back, to Phi(s_{t-1}): action t leads to the state in which t + 1 is chosen": table(step=-1),
            "the last action is not charged: after it Phi is 0, so it pays back all of - Phi(s_t)": table(last=0.0),
            "one step late, gamma * Phi(s_t) - Phi(s_{t-1}): action t leads from s_t to s_{t+1}": late,
            "after the end nothing is paid: multiply the result by the mask too": table() + rewards * (1 - mask),
            "gamma is on the rewards as well: it belongs to Phi(s_{t+1}) only": table(pays=gamma),
            "roll wraps round, and what stands after the end leaks in: there Phi is 0": table(masked=False, wraps=True)
            * mask,
            "roll wraps round: the last action of a full row sees the potential of its first state": _only_full_rows(
                table(masked=False, wraps=True) * mask, table(), lengths
            ),
        },
    )


@exercise("04.3")
def check_next_token_gradient(fn: Callable, draw: Draw) -> None:
    """Exercise 04.3: fn(logits [N, V], targets [N]) -> expected gradient of the reward in the logits [N, V]."""
    N = draw.size(4)
    logits, targets = draw.randn(N, 5), draw.integers(5, N)
    redraw_unless((targets == 4).any())

    def table(entry: Callable[[list[float], int, int], float], targets: Tensor = targets) -> Tensor:
        rows = []
        for row, y in zip(logits.tolist(), targets.tolist()):
            z = sum(math.exp(x) for x in row)
            rows.append([entry([math.exp(x) / z for x in row], y, v) for v in range(5)])
        return torch.tensor(rows)

    def slope(pi: list[float], a: int, v: int) -> float:
        return (a == v) - pi[v]

    def expected(pi: list[float], y: int, v: int) -> float:
        return sum(pi[a] * (a == y) * slope(pi, a, v) for a in range(5))  # every guess, listed

    down = list(zip(*([math.exp(x) / sum(map(math.exp, z)) for x in z] for z in logits.T.tolist())))  # over the states
    verdict(
        fn,
        (logits, targets),
        table(expected),
        {
            "the softmax runs over the states (dimension 0): the tokens of one state compete": torch.tensor(
                [[row[y] * slope(row, y, v) for v in range(5)] for row, y in zip(down, targets.tolist())]
            ),
            "the factor is log pi(y): it must be pi(y), the probability of the right guess": table(
                lambda pi, y, v: math.log(pi[y]) * slope(pi, y, v)
            ),
            "the factor is 1 - pi(y): it must be pi(y), the probability of the right guess": table(
                lambda pi, y, v: (1 - pi[y]) * slope(pi, y, v)
            ),
            "this is the gradient of the likelihood: the factor pi(y) is missing, the chance of a right guess": table(
                slope
            ),
            "this is the gradient of the cross-entropy loss: turn its sign, take no mean over rows, and the factor "
            "pi(y) is missing": table(lambda pi, y, v: -slope(pi, y, v) / N),
            "the sign is flipped: this is the gradient of a loss, the reward is climbed": table(
                lambda pi, y, v: -pi[y] * slope(pi, y, v)
            ),
            "the factor is pi(v), each token's own: it must be pi(y), the probability of the right guess": table(
                lambda pi, y, v: pi[v] * slope(pi, y, v)
            ),
            "only the right token has a gradient in yours: the softmax takes from the others what it gives": table(
                lambda pi, y, v: pi[y] * (v == y) * (1 - pi[y])
            ),
            "the factor is squared": table(lambda pi, y, v: pi[y] ** 2 * slope(pi, y, v)),
            "this is pi(y) at the right token: the probabilities are not subtracted": table(
                lambda pi, y, v: pi[y] * (v == y)
            ),
            "divided by the number of rows: one gradient for each row, no mean over them": table(
                lambda pi, y, v: pi[y] * slope(pi, y, v) / N
            ),
        },
    )
    low, named = targets % 4, "one_hot needs the vocabulary size: it took the largest token of the batch"
    demand(fn, (logits, low), table(expected, low), named)


@exercise("04.4")
def check_paid_as_it_grows(fn: Callable, draw: Draw) -> None:
    """Exercise 04.4: fn(before [B, T], scores [B]) -> rewards [B, T]: what each action added to the score."""
    added_up = (2 * draw.randn(draw.size(3), 5)).cumsum(1)
    grown = [
        [start, *(start + x for x in row)] for start, row in zip(draw.randn(len(added_up)).tolist(), added_up.tolist())
    ]
    before, scores = draw.tensor(grown)[:, :5], draw.tensor(grown)[:, 5]

    def table(one: Callable[[list[float], int], float], last: Callable[[list[float]], float] | None = None) -> Tensor:
        rows = [[last(s) if last and t == 4 else one(s, t) for t in range(5)] for s in grown]
        return torch.tensor(rows)

    def added(s: list[float], t: int) -> float:
        return s[t + 1] - s[t]

    verdict(
        fn,
        (before, scores),
        table(added),
        {
            "one token late: action t is paid for what action t - 1 added, and the last action is never paid": table(
                lambda s, t: added(s, t - 1) if t else 0.0
            ),
            "the last action is paid rightly, but all the others are still one token late": table(
                lambda s, t: added(s, t - 1) if t else 0.0, last=lambda s: added(s, 4)
            ),
            "the sum is right now, but it is still paid one token late, with the rest on top at the end": table(
                lambda s, t: added(s, t - 1) if t else 0.0, last=lambda s: added(s, 3) + added(s, 4)
            ),
            "one token early: action t is paid for what action t + 1 will add": table(
                lambda s, t: added(s, t + 1), last=lambda s: 0.0
            ),
            "the last action is not paid for what it added: after it stands the final score": table(
                added, last=lambda s: 0.0
            ),
            "the last action gets the whole score: what was paid before is paid twice": table(
                added, last=lambda s: s[5]
            ),
            "after the last action stands the final score, not 0: in yours everything is taken back at the end": table(
                added, last=lambda s: -s[4]
            ),
            "roll brings the first column round: after the last action stands the final score, not before[:, 0]": table(
                added, last=lambda s: s[0] - s[4]
            ),
            "the first action is paid for the score before it, too: before[:, 0] need not be 0, subtract it": table(
                lambda s, t: added(s, t) if t else s[1]
            ),
            "this is what the rest of the text adds, the reward-to-go: asked is the reward of each action": table(
                lambda s, t: s[5] - s[t]
            ),
            "these are running scores, not what each action added": table(lambda s, t: s[t + 1]),
            "the sign is flipped: an action that raised the score is paid": table(lambda s, t: -added(s, t)),
            "everything is paid at the end: this is the terminal reward again": table(
                lambda s, t: 0.0, last=lambda s: s[5]
            ),
        },
    )


def _only_full_rows(wrong: Tensor, right: Tensor, lengths: list[int]) -> Tensor:
    return torch.stack([w if n == wrong.shape[1] else r for w, r, n in zip(wrong, right, lengths)])
