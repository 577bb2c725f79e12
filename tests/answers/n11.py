"""Notebook 11: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def targets_by_loop(rewards, next_q, dones, gamma):
    targets = []
    for r, row, done in zip(rewards, next_q, dones):
        targets.append(r if done == 1 else r + gamma * row.max())
    return torch.stack(targets)


def best(next_q):
    return next_q.max(dim=1)[0]


TD_TARGETS = {
    "right": targets_by_loop,
    "right too": lambda r, q, d, g: r + g * (1 - d) * torch.amax(q, 1),
    "the end is ignored": lambda r, q, d, g: r + g * best(q),
    "dones is inverted": lambda r, q, d, g: r + g * d * best(q),
    "this is the mean": lambda r, q, d, g: r + g * (1 - d) * q.mean(1),
    "gamma is missing": lambda r, q, d, g: r + (1 - d) * best(q),
    "the reward of the step itself is missing": lambda r, q, d, g: g * (1 - d) * best(q),
    "the sign of the future": lambda r, q, d, g: r - g * (1 - d) * best(q),
    "the smallest next value": lambda r, q, d, g: r + g * (1 - d) * q.min(dim=1)[0],
    "in the whole batch": lambda r, q, d, g: r + g * (1 - d) * q.max(),
    "must be (5,), got (5, 3)": lambda r, q, d, g: r[:, None] + g * (1 - d)[:, None] * q,
    "last token is lost": lambda r, q, d, g: (r + g * best(q)) * (1 - d),
    "expected\n": lambda r, q, d, g: -targets_by_loop(r, q, d, g),
}


def greedy_by_loop(q, epsilon):
    probabilities = torch.full(q.shape, epsilon / q.shape[1])
    for n, row in enumerate(q):
        winners = torch.nonzero(row == row.max()).flatten()
        for w in winners:
            probabilities[n, w] += (1 - epsilon) / len(winners)
    return probabilities


def first_best(q):
    return torch.nn.functional.one_hot(q.argmax(1), q.shape[1]).float()


def ties(q):
    return (q == q.max(1, keepdim=True)[0]).float()


EPSILON_GREEDY = {
    "right": greedy_by_loop,
    "right too": lambda q, e: (1 - e) * ties(q) / ties(q).sum(1, keepdim=True) + e / q.shape[1],
    "the best token is missing": lambda q, e: (1 - e) * first_best(q) + e * (1 - first_best(q)) / (q.shape[1] - 1),
    "only the first gets": lambda q, e: (1 - e) * first_best(q) + e / q.shape[1],
    "must share one greedy part": lambda q, e: (1 - e) * ties(q) + e / q.shape[1],
    "are exchanged": lambda q, e: greedy_by_loop(q, 1 - e),
    "in the whole batch": lambda q, e: (1 - e) * (q == q.max()).float() + e / q.shape[1],
    "nothing is ever explored": lambda q, e: ties(q) / ties(q).sum(1, keepdim=True),
    "epsilon / V each": lambda q, e: (1 - e) * ties(q) / ties(q).sum(1, keepdim=True) + e,
    "the worst token": lambda q, e: greedy_by_loop(-q, e),
    "this is a softmax": lambda q, e: torch.softmax(q, 1),
    "a softmax gives out": lambda q, e: (1 - e) * q.softmax(1) + e / q.shape[1],
    "must be (3, 4), got (3,)": lambda q, e: q.argmax(1),
    "expected\n": lambda q, e: ties(q.T).T,
}

DOUBLE_ESTIMATE = {
    "right": lambda a, b: torch.stack([b[n, a[n].argmax()] for n in range(len(a))]),
    "right too": lambda a, b: torch.gather(b, 1, torch.argmax(a, 1, keepdim=True)).squeeze(1),
    "the first set chooses and judges": lambda a, b: a.max(1).values,
    "the second set chooses and judges": lambda a, b: b.max(1).values,
    "the roles are exchanged": lambda a, b: torch.gather(a, 1, b.argmax(1, keepdim=True)).squeeze(1),
    "averaging first": lambda a, b: ((a + b) / 2).max(1).values,
    "mean of two maxima": lambda a, b: (a.max(1).values + b.max(1).values) / 2,
    "the average chooses": lambda a, b: torch.gather(b, 1, (a + b).argmax(1, keepdim=True)).squeeze(1),
    "the smaller of two maxima": lambda a, b: torch.minimum(a.max(1).values, b.max(1).values),
    "the worst token was chosen": lambda a, b: torch.gather(b, 1, a.argmin(1, keepdim=True)).squeeze(1),
    "the numbers of the tokens": lambda a, b: a.argmax(1).float(),
    "must be (6,), got (4,)": lambda a, b: torch.gather(b, 0, a.argmax(0, keepdim=True)).squeeze(0),
    "expected\n": lambda a, b: -torch.gather(b, 1, a.argmax(1, keepdim=True)).squeeze(1),
}


def text_targets_by_loop(target_q, rewards, mask, gamma):
    targets = torch.zeros_like(rewards)
    for b in range(rewards.shape[0]):
        length = int(mask[b].sum())
        for t in range(length):
            targets[b, t] = rewards[b, t]
            if t < length - 1:
                targets[b, t] += gamma * target_q[b, t + 1].max()
    return targets


def values_after(target_q, mask=None):
    value = target_q.amax(-1) if mask is None else target_q.amax(-1) * mask
    return torch.nn.functional.pad(value[:, 1:], (0, 1))


TEXT_TARGETS = {
    "right": text_targets_by_loop,
    "right too": lambda q, r, m, g: torch.where(m == 1, r + g * values_after(q, m), torch.zeros(())),
    "roll wraps around": lambda q, r, m, g: (r + g * q.amax(-1).roll(-1, 1)) * m,
    "in short texts only": lambda q, r, m, g: (r + g * (q.amax(-1) * m).roll(-1, 1)) * m,
    "in full rows only": lambda q, r, m, g: (r + g * values_after(q)) * m,
    "not shifted": lambda q, r, m, g: (r + g * q.amax(-1)) * m,
    "shifted the wrong way": lambda q, r, m, g: (r + g * torch.nn.functional.pad(q.amax(-1)[:, :-1], (1, 0))) * m,
    "what is masked must be 0": lambda q, r, m, g: r + g * values_after(q, m),
    "the mean over the next tokens": lambda q, r, m, g: (
        (r + g * torch.nn.functional.pad((q.mean(-1) * m)[:, 1:], (0, 1))) * m
    ),
    "no bootstrap": lambda q, r, m, g: r * m,
    "gamma is missing": lambda q, r, m, g: text_targets_by_loop(q, r, m, 1.0),
    "last token is lost": lambda q, r, m, g: torch.nn.functional.pad(
        ((r[:, :-1] + g * q[:, 1:].amax(-1)) * m[:, 1:]), (0, 1)
    ),
    "must be (3, 4), got (3, 3)": lambda q, r, m, g: text_targets_by_loop(q, r, m, g)[:, :-1],
    "expected\n": lambda q, r, m, g: -text_targets_by_loop(q, r, m, g),
}

EXERCISES = {
    "td_targets": ("11.1", TD_TARGETS),
    "epsilon_greedy": ("11.2", EPSILON_GREEDY),
    "double_estimate": ("11.3", DOUBLE_ESTIMATE),
    "text_targets": ("11.4", TEXT_TARGETS),
}
