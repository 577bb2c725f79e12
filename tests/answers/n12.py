"""Notebook 12: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch
from torch.nn.functional import logsigmoid


def rows(scores, G):
    return scores.view(len(scores) // G, G)


def standardised(scores, G):
    result = torch.zeros_like(scores)
    for i in range(0, len(scores), G):
        group = scores[i : i + G]
        if group.max() > group.min():
            result[i : i + G] = (group - group.mean()) / group.std()
    return result


def scaled(scores, G, divide_by):
    group = rows(scores, G)
    return ((group - group.mean(1, keepdim=True)) / divide_by(group)).view(-1)


GROUP_ADVANTAGES = {
    "right": standardised,
    "right too": lambda s, G: scaled(s, G, lambda g: g.std(1, keepdim=True) + 1e-6),
    "the division is missing": lambda s, G: scaled(s, G, lambda g: 1),
    "this is RLOO": lambda s, G: (rows(s, G) - (rows(s, G).sum(1, keepdim=True) - rows(s, G)) / (G - 1)).flatten(),
    "divided by the variance": lambda s, G: scaled(s, G, lambda g: g.var(1, keepdim=True) + 1e-6),
    "is over G here": lambda s, G: scaled(s, G, lambda g: g.std(1, correction=0, keepdim=True) + 1e-6),
    "over the whole batch": lambda s, G: (s - s.mean()) / s.std(),
    "the standard deviation that of the batch": lambda s, G: scaled(s, G, lambda g: g.std()),
    "the groups are taken apart": lambda s, G: (
        (s.view(G, -1) - s.view(G, -1).mean(0)) / (s.view(G, -1).std(0) + 1e-6)
    ).flatten(),
    "along the wrong dimension": lambda s, G: (
        (rows(s, G) - rows(s, G).mean(0)) / torch.where(rows(s, G).std(0) > 0, rows(s, G).std(0), 1)
    ).flatten(),
    "the mean is not subtracted": lambda s, G: (
        rows(s, G) / torch.where(rows(s, G).std(1) > 0, rows(s, G).std(1), 1)[:, None]
    ).flatten(),
    "the sign is flipped": lambda s, G: -standardised(s, G),
    "gives nan": lambda s, G: scaled(s, G, lambda g: g.std(1, keepdim=True)),
    "must be (12,), got (3, 4)": lambda s, G: standardised(s, G).view(-1, G),
    "expected\n": lambda s, G: 2 * standardised(s, G),
}


def levels(p, scores):
    upto = ((scores[:, None] >= scores) * p).sum(1)
    below = ((scores[:, None] > scores) * p).sum(1)
    return upto, below


def kept(p, scores, n):
    upto, below = levels(p, scores)
    return p / (upto - below) * (upto**n - below**n)


def kept_by_loop(p, scores, n):
    result = []
    for i in range(len(p)):
        at_most = sum(p[j] for j in range(len(p)) if scores[j] <= scores[i])
        less = sum((p[j] for j in range(len(p)) if scores[j] < scores[i]), torch.tensor(0.0))
        result.append((at_most**n - less**n) * p[i] / (at_most - less))
    return torch.stack(result)


def in_order(p, scores, n):
    """Sorted by score, summed up, and the difference taken, as if no two texts ever scored the same."""
    order = torch.argsort(scores, stable=True)
    F = p[order].cumsum(0)
    result = torch.zeros_like(p)
    result[order] = torch.diff(F**n, prepend=torch.zeros(1))
    return result


def equal_parts(p, scores, n):
    upto, below = levels(p, scores)
    return (upto**n - below**n) / (scores[:, None] == scores).sum(1)


def slope(p, scores, n):
    return n * p * levels(p, scores)[0] ** (n - 1)


BEST_OF_N = {
    "right": kept,
    "right too": kept_by_loop,
    "the worst of n": lambda p, s, n: kept(p, -s, n),
    "the last in the list wins": in_order,
    "the first in the list wins": lambda p, s, n: in_order(p.flip(0), s.flip(0), n).flip(0),
    "share equally": equal_parts,
    "the probability of its whole level": lambda p, s, n: levels(p, s)[0] ** n - levels(p, s)[1] ** n,
    "F^n alone": lambda p, s, n: levels(p, s)[0] ** n,
    "p * F^n does not sum to 1": lambda p, s, n: p * levels(p, s)[0] ** n,
    "the division by F - F_below is missing": lambda p, s, n: p * (levels(p, s)[0] ** n - levels(p, s)[1] ** n),
    "and each one is rare": slope,
    "divided so that it sums to 1": lambda p, s, n: slope(p, s, n) / slope(p, s, n).sum(),
    "is among the n": lambda p, s, n: 1 - (1 - p) ** n,
    "nothing has changed": lambda p, s, n: p,
    "must be (5,), got (3,)": lambda p, s, n: kept(p, s, n)[:3],
    "expected\n": lambda p, s, n: kept(p, s, n + 1),
}


def gap(w, l, ref_w, ref_l):
    return w - ref_w - (l - ref_l)


def ipo_by_loop(w, l, ref_w, ref_l, tau):
    total = torch.tensor(0.0)
    for a, b, ra, rb in zip(w, l, ref_w, ref_l):
        total = total + ((a - b) - (ra - rb) - 0.5 / tau) ** 2
    return total / len(w)


IPO_LOSS = {
    "right": ipo_by_loop,
    "right too": lambda w, l, rw, rl, tau: torch.nn.functional.mse_loss(
        gap(w, l, rw, rl), torch.full_like(w, 1 / (2 * tau))
    ),
    "not 1 / tau": lambda w, l, rw, rl, tau: ((gap(w, l, rw, rl) - 1 / tau) ** 2).mean(),
    "not tau / 2": lambda w, l, rw, rl, tau: ((gap(w, l, rw, rl) - 1 / 2 * tau) ** 2).mean(),
    "not 2 tau": lambda w, l, rw, rl, tau: ((gap(w, l, rw, rl) - 2 * tau) ** 2).mean(),
    "the reference is ignored": lambda w, l, rw, rl, tau: ((w - l - 1 / (2 * tau)) ** 2).mean(),
    "the reference has the wrong sign": lambda w, l, rw, rl, tau: ((w + rw - l - rl - 1 / (2 * tau)) ** 2).mean(),
    "the two log-ratios are added": lambda w, l, rw, rl, tau: (((w - rw) + (l - rl) - 1 / (2 * tau)) ** 2).mean(),
    "are swapped": lambda w, l, rw, rl, tau: ((gap(l, w, rl, rw) - 1 / (2 * tau)) ** 2).mean(),
    "the square is missing": lambda w, l, rw, rl, tau: (gap(w, l, rw, rl) - 1 / (2 * tau)).mean(),
    "this is the absolute difference": lambda w, l, rw, rl, tau: (gap(w, l, rw, rl) - 1 / (2 * tau)).abs().mean(),
    "this is DPO": lambda w, l, rw, rl, tau: -logsigmoid(tau * gap(w, l, rw, rl)).mean(),
    "does not multiply the gap": lambda w, l, rw, rl, tau: ((tau * gap(w, l, rw, rl) - 1 / (2 * tau)) ** 2).mean(),
    "the sum over the pairs": lambda w, l, rw, rl, tau: ((gap(w, l, rw, rl) - 1 / (2 * tau)) ** 2).sum(),
    "averaged first": lambda w, l, rw, rl, tau: (gap(w, l, rw, rl) - 1 / (2 * tau)).mean() ** 2,
    "no gradient reaches": lambda w, l, rw, rl, tau: ipo_by_loop(w.detach(), l.detach(), rw, rl, tau),
    "its gradient on `rejected` is not": lambda w, l, rw, rl, tau: ipo_by_loop(w, l.detach(), rw, rl, tau),
    "must be (), got (5,)": lambda w, l, rw, rl, tau: (gap(w, l, rw, rl) - 1 / (2 * tau)) ** 2,
    "expected\n": lambda w, l, rw, rl, tau: ipo_by_loop(w, l, rw, rl, tau) / 2,
}


def paid(logprobs, ref, scores, price):
    return (scores - price * (logprobs - ref)).detach()


PRICED_LOSS = {
    "right": lambda lp, ref, s, b: -(paid(lp, ref, s, b) * lp).mean(),
    "right too": lambda lp, ref, s, b: (-s * lp + b * (lp - ref).square() / 2).mean(),
    "right by ratios": lambda lp, ref, s, b: -(paid(lp, ref, s, b) * torch.exp(lp - lp.detach())).sum() / len(lp),
    "this is the bug itself": lambda lp, ref, s, b: -(s * lp).mean() + b * (lp - ref).mean(),
    "this is k3 in the loss": lambda lp, ref, s, b: (-s * lp + b * (torch.exp(ref - lp) - 1 + lp - ref)).mean(),
    "on average this is right, but k1": lambda lp, ref, s, b: (
        -((s - b * (lp - ref)) * torch.exp(lp - lp.detach())).mean()
    ),
    "do not multiply by their probability": lambda lp, ref, s, b: -(paid(lp, ref, s, b) * lp.exp()).mean(),
    "the price is not there": lambda lp, ref, s, b: -(s * lp).mean(),
    "the sign of the price": lambda lp, ref, s, b: -(paid(lp, ref, s, -b) * lp).mean(),
    "the sign of the whole": lambda lp, ref, s, b: (paid(lp, ref, s, b) * lp).mean(),
    "the price carries gradient": lambda lp, ref, s, b: -((s - b * (lp - ref)) * lp).mean(),
    "the sum over the texts": lambda lp, ref, s, b: -(paid(lp, ref, s, b) * lp).sum(),
    "each text pays its own": lambda lp, ref, s, b: -((s - b * (lp - ref).mean()).detach() * lp).mean(),
    "no baseline": lambda lp, ref, s, b: -((paid(lp, ref, s, b) - paid(lp, ref, s, b).mean()) * lp).mean(),
    "kl_coef is ignored": lambda lp, ref, s, b: -(paid(lp, ref, s, 1.0) * lp).mean(),
    "without its half": lambda lp, ref, s, b: (-s * lp + b * (lp - ref) ** 2).mean(),
    "must be (), got (4,)": lambda lp, ref, s, b: -paid(lp, ref, s, b) * lp,
    "something was detached": lambda lp, ref, s, b: -(paid(lp, ref, s, b) * lp.detach()).mean(),
    "gradient on logprobs: expected\n": lambda lp, ref, s, b: -(paid(lp, ref, s, b) * lp).mean() / 3,
}

EXERCISES = {
    "group_advantages": ("12.1", GROUP_ADVANTAGES),
    "best_of_n": ("12.2", BEST_OF_N),
    "ipo_loss": ("12.3", IPO_LOSS),
    "priced_loss": ("12.4", PRICED_LOSS),
}
