"""Notebook 08: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch
from torch.nn import functional as F


def verdicts_by_loop(preferred, rejected):
    total = torch.zeros(())
    for a, b in zip(preferred, rejected):
        total = total + torch.logaddexp(b - a, torch.zeros(()))
    return total / len(preferred)


BRADLEY_TERRY = {
    "right": verdicts_by_loop,
    "right too": lambda a, b: F.binary_cross_entropy_with_logits(a - b, torch.ones_like(a)),
    "the sign is flipped": lambda a, b: F.logsigmoid(a - b).mean(),
    "the two are swapped": lambda a, b: F.softplus(a - b).mean(),
    "this is the sum": lambda a, b: F.softplus(b - a).sum(),
    "the logarithm is missing": lambda a, b: -torch.sigmoid(a - b).mean(),
    "the logistic function is missing": lambda a, b: -(a - b).mean(),
    "not each score by itself": lambda a, b: -(torch.sigmoid(a) / torch.sigmoid(b)).log().mean(),
    "the logarithm comes before the mean": lambda a, b: -torch.sigmoid(a - b).mean().log(),
    "this is a hinge loss": lambda a, b: F.relu(1 - (a - b)).mean(),
    "the loss breaks at differences": lambda a, b: -torch.sigmoid(a - b).log().mean(),
    "where exp overflows": lambda a, b: torch.log(1 + torch.exp(b - a)).mean(),
    "no small number inside a logarithm": lambda a, b: -(torch.sigmoid(a - b) + 1e-8).log().mean(),
    "no gradient reaches": lambda a, b: F.softplus(b.detach() - a.detach()).mean(),
    "its gradient on `rejected` is not": lambda a, b: F.softplus(b.detach() - a).mean(),
    "must be (), got (5,)": lambda a, b: F.softplus(b - a),
    "expected\n": lambda a, b: F.mse_loss(a, b),
}


def soft_by_loop(first, second, probability):
    losses = []
    for a, b, p in zip(first, second, probability):
        chance = torch.exp(a) / (torch.exp(a) + torch.exp(b))
        losses.append(-p * chance.log() - (1 - p) * (1 - chance).log())
    return torch.stack(losses).mean()


def entropy_of(p):
    return -(p * p.log() + (1 - p) * (1 - p).log())


SOFT_LABELS = {
    "right": soft_by_loop,
    "right too": lambda a, b, p: F.binary_cross_entropy_with_logits(a - b, p),
    "the sign is flipped": lambda a, b, p: -soft_by_loop(a, b, p),
    "the labels are ignored": lambda a, b, p: F.softplus(b - a).mean(),
    "so that p cancels": lambda a, b, p: -(p * F.logsigmoid(a - b) + (1 - p) * F.logsigmoid(a - b)).mean(),
    "no gradient reaches": lambda a, b, p: soft_by_loop(a.detach(), b.detach(), p),
    "its gradient on `second` is not": lambda a, b, p: soft_by_loop(a, b.detach(), p),
    "only one of two cases": lambda a, b, p: (p * F.softplus(b - a)).mean(),
    "the second case is subtracted": lambda a, b, p: (p * F.softplus(b - a) - (1 - p) * F.softplus(a - b)).mean(),
    "the shares are swapped": lambda a, b, p: soft_by_loop(b, a, p),
    "the share is rounded": lambda a, b, p: F.binary_cross_entropy_with_logits(a - b, p.round()),
    "not the difference": lambda a, b, p: F.softplus(p * (b - a)).mean(),
    "this is a squared error": lambda a, b, p: F.mse_loss(torch.sigmoid(a - b), p),
    "this is the sum": lambda a, b, p: F.binary_cross_entropy_with_logits(a - b, p, reduction="sum"),
    "this is the KL divergence": lambda a, b, p: soft_by_loop(a, b, p) - entropy_of(p).mean(),
    "must be (), got (5,)": lambda a, b, p: F.binary_cross_entropy_with_logits(a - b, p, reduction="none"),
    "expected\n": lambda a, b, p: soft_by_loop(a, b, p) / 2,
}


def last_by_loop(hidden, mask):
    states = []
    for row, counts in zip(hidden, mask):
        last = max(t for t in range(len(counts)) if counts[t] == 1 or t == 0)
        states.append(row[last])
    return torch.stack(states)


def at(hidden, positions):
    return torch.gather(hidden, 1, positions.long()[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)


LAST_STATE = {
    "right": last_by_loop,
    "right too": lambda h, m: at(h, m.cumsum(1).argmax(1)),
    "this is the last column": lambda h, m: h[:, -1],
    "yours is padding": lambda h, m: at(h, m.sum(1)),
    "the last but one": lambda h, m: at(h, (m.sum(1) - 2).clamp(min=0)),
    "this is the first token": lambda h, m: at(h, m.argmax(1)),
    "the mean over the real tokens": lambda h, m: (h * m[..., None]).sum(1) / m.sum(1, keepdim=True),
    "the sum over the real tokens": lambda h, m: (h * m[..., None]).sum(1),
    "padding included": lambda h, m: h.mean(1),
    "all rows are read where the first one ends": lambda h, m: h[:, int(m[0].sum()) - 1],
    "masking makes the padding zero": lambda h, m: (h * m[..., None])[:, -1],
    "must be (3, 4), got (3, 6, 4)": lambda h, m: h * m[..., None],
    "expected\n": lambda h, m: last_by_loop(h, m).flip(0),
}


def bound_by_loop(scores, k):
    answer = []
    for b in range(scores.shape[1]):
        column = scores[:, b]
        answer.append(column.mean() - k * ((column**2).mean() - column.mean() ** 2).sqrt())
    return torch.stack(answer)


LOWER_BOUND = {
    "right": bound_by_loop,
    "right too": lambda s, k: torch.mean(s, 0) - k * torch.var(s, 0, unbiased=False) ** 0.5,
    "the deviation is added": lambda s, k: bound_by_loop(s, -k),
    "k is ignored": lambda s, k: bound_by_loop(s, 1),
    "this is the mean alone": lambda s, k: s.mean(0),
    "this is the smallest score": lambda s, k: s.amin(0),
    "the square root is missing": lambda s, k: s.mean(0) - k * s.var(0, correction=0),
    "divide by M": lambda s, k: s.mean(0) - k * s.std(0),
    "the deviation runs over everything": lambda s, k: s.mean(0) - k * s.std(correction=0),
    "must be (5,), got (3,)": lambda s, k: s.mean(1) - k * s.std(1, correction=0),
    "expected\n": lambda s, k: s.median(0).values - k * s.std(0, correction=0),
}

EXERCISES = {
    "bradley_terry": ("08.1", BRADLEY_TERRY),
    "soft_labels": ("08.2", SOFT_LABELS),
    "last_state": ("08.3", LAST_STATE),
    "lower_bound": ("08.4", LOWER_BOUND),
}
