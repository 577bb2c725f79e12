"""Notebook 10: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch
from torch.nn import functional as F


def f1_by_loop(labels, predicted, num_labels):
    result = []
    for c in range(num_labels):
        hits = ((labels == c) & (predicted == c)).sum().item()
        misses, false_alarms = ((labels == c) & (predicted != c)).sum(), ((labels != c) & (predicted == c)).sum()
        result.append(hits / (hits + (misses.item() + false_alarms.item()) / 2) if hits else 0.0)
    return torch.tensor(result)


def counts(labels, predicted, A):
    true, said = F.one_hot(labels, A).float(), F.one_hot(predicted, A).float()
    return (true * said).sum(0), said.sum(0), true.sum(0)


def safe(a, b):
    return a / b.clamp(min=1)


def harmonic(y, a, A, empty=0.0):
    tp, said, true = counts(y, a, A)
    return torch.where(said + true > 0, 2 * tp / (said + true), empty)


def plain_average(y, a, A):
    tp, said, true = counts(y, a, A)
    return (safe(tp, said) + safe(tp, true)) / 2


CLASS_F1 = {
    "right": f1_by_loop,
    "right too": harmonic,
    "0 divided by 0": lambda y, a, A: harmonic(y, a, A, torch.nan),
    "this is precision": lambda y, a, A: safe(counts(y, a, A)[0], counts(y, a, A)[1]),
    "this is recall": lambda y, a, A: safe(counts(y, a, A)[0], counts(y, a, A)[2]),
    "this is the plain average": plain_average,
    "the Jaccard index": lambda y, a, A: safe(harmonic(y, a, A), 2 * torch.ones(A)) / (1 - harmonic(y, a, A) / 2),
    "the factor 2 is missing": lambda y, a, A: harmonic(y, a, A) / 2,
    "accuracy of one class against the rest": lambda y, a, A: torch.stack(
        [((y == c) == (a == c)).float().mean() for c in range(A)]
    ),
    "must be (4,), got ()": lambda y, a, A: f1_by_loop(y, a, A).mean(),
    "expected\n": lambda y, a, A: 1 - f1_by_loop(y, a, A),
}


def cheapest_by_loop(p, costs):
    chosen = []
    for row in p:
        prices = [sum(row[y] * costs[y, a] for y in range(len(row))) for a in range(len(row))]
        chosen.append(min(range(len(row)), key=lambda a: prices[a]))
    return torch.tensor(chosen)


CHEAPEST_LABEL = {
    "right": cheapest_by_loop,
    "right too": lambda p, costs: torch.einsum("ny,ya->na", p, -costs).argmax(1),
    "the costs are ignored": lambda p, costs: p.argmax(1),
    "the table is read the wrong way round": lambda p, costs: (p @ costs.T).argmin(1),
    "this is the dearest label": lambda p, costs: (p @ costs).argmax(1),
    "the probabilities are ignored": lambda p, costs: costs.sum(0).argmin().expand(len(p)),
    "must be (5,), got (5, 3)": lambda p, costs: p @ costs,
    "expected\n": lambda p, costs: 2 - cheapest_by_loop(p, costs),
}


def value_by_loop(logits, actions, rewards, propensities):
    above = below = 0.0
    for row, a, r, m in zip(logits, actions, rewards, propensities):
        w = torch.exp(row[a]) / torch.exp(row).sum() / m
        above, below = above + w * r, below + w
    return above / below


def chosen(logits, actions):
    return torch.softmax(logits, 1)[torch.arange(len(actions)), actions]


def weighted(w, r):
    return (w * r).sum() / w.sum()


LOGGED_VALUE = {
    "right": value_by_loop,
    "right too": lambda z, a, r, mu: (chosen(z, a) / mu / (chosen(z, a) / mu).mean() * r).mean(),
    "this is the mean of the logged rewards": lambda z, a, r, mu: r.mean(),
    "divided by the number of rows": lambda z, a, r, mu: (chosen(z, a) / mu * r).mean(),
    "the new policy is missing": lambda z, a, r, mu: weighted(1 / mu, r),
    "these are logits in the weights": lambda z, a, r, mu: weighted(z[torch.arange(len(a)), a] / mu, r),
    "the weights are upside down": lambda z, a, r, mu: weighted(mu / chosen(z, a), r),
    "the propensities are missing": lambda z, a, r, mu: weighted(chosen(z, a), r),
    "these are log-probabilities": lambda z, a, r, mu: weighted(chosen(z, a).log() / mu, r),
    "must be (), got (5,)": lambda z, a, r, mu: chosen(z, a) / mu * r,
    "expected\n": lambda z, a, r, mu: -value_by_loop(z, a, r, mu),
}


def paid_by_loop(logits, actions, labels):
    rewards = [1.0 if a == y else 0.0 for a, y in zip(actions.tolist(), labels.tolist())]
    total = 0.0
    for b, (row, a) in enumerate(zip(logits, actions)):
        others = [r for i, r in enumerate(rewards) if i != b]
        total = total - (rewards[b] - sum(others) / len(others)) * torch.log_softmax(row, 0)[a]
    return total / len(logits)


def paid(logits, picked, rewards, baseline, sign=-1):
    return sign * (torch.log_softmax(logits, 1).gather(1, picked[:, None])[:, 0] * (rewards - baseline)).mean()


def one(actions, labels):
    return (actions == labels).float()


def others(r):
    return (r.sum() - r) / (len(r) - 1)


PAID_CHOICE = {
    "right": paid_by_loop,
    "right too": lambda z, a, y: (F.cross_entropy(z, a, reduction="none") * (one(a, y) - others(one(a, y)))).mean(),
    "log-probability of the true label": lambda z, a, y: paid(z, y, one(a, y), others(one(a, y))),
    "it is told the label": lambda z, a, y: F.cross_entropy(z, y),
    "it learns to be wrong": lambda z, a, y: -F.cross_entropy(z, y),
    "the sign is flipped": lambda z, a, y: -paid_by_loop(z, a, y),
    "the baseline holds the row's own reward": lambda z, a, y: paid(z, a, one(a, y), one(a, y).mean()),
    "there is no baseline": lambda z, a, y: paid(z, a, one(a, y), 0.0),
    "every choice got every row's": lambda z, a, y: (
        -(torch.log_softmax(z, 1).gather(1, a[:, None]) * (one(a, y) - others(one(a, y)))).mean()
    ),
    "the logarithm is missing": lambda z, a, y: -(chosen(z, a) * (one(a, y) - others(one(a, y)))).mean(),
    "no gradient reaches": lambda z, a, y: paid_by_loop(z.detach(), a, y),
    "its gradient on `logits` is not": lambda z, a, y: paid_by_loop(torch.cat([z[:, :1].detach(), z[:, 1:]], 1), a, y),
    "expected\n": lambda z, a, y: paid_by_loop(z, a, y) * len(a),
    "must be (), got (6,)": lambda z, a, y: F.cross_entropy(z, a, reduction="none"),
}

KIND = {"cheapest_label": "integer"}  # where right numbers of another kind are refused
EXERCISES = {
    "class_f1": ("10.1", CLASS_F1),
    "cheapest_label": ("10.2", CHEAPEST_LABEL),
    "logged_value": ("10.3", LOGGED_VALUE),
    "paid_choice": ("10.4", PAID_CHOICE),
}
