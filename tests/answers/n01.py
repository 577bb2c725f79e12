"""Notebook 01: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch
import torch.nn.functional as F


def expected_return_by_loop(pi, mask, rewards):
    total = 0.0
    for n in range(len(pi)):
        probability, earned = 1.0, 0.0
        for t in range(pi.shape[1]):
            if mask[n, t] == 1:
                probability = probability * pi[n, t]
                earned = earned + rewards[n, t]
        total = total + probability * earned
    return total


def filled(pi, mask):
    return torch.where(mask == 1, pi, torch.ones(()))


EXPECTED_RETURN = {
    "right": expected_return_by_loop,
    "right too": lambda pi, m, r: torch.exp((torch.log(pi) * m).sum(1)) @ (r * m).sum(1),
    "a plain mean over the list": lambda pi, m, r: (r * m).sum(1).mean(),
    "divided by the number of texts": lambda pi, m, r: (filled(pi, m).prod(1) * (r * m).sum(1)).mean(),
    "multiplied, not added": lambda pi, m, r: ((pi * m).sum(1) * (r * m).sum(1)).sum(),
    "adds log-probabilities": lambda pi, m, r: ((torch.log(pi) * m).sum(1) * (r * m).sum(1)).sum(),
    "added, not multiplied": lambda pi, m, r: filled(pi, m).prod(1) @ filled(r, m).prod(1),
    "the mask is ignored": lambda pi, m, r: (pi.prod(1) * r.sum(1)).sum(),
    "not applied to the probabilities": lambda pi, m, r: (pi.prod(1) * (r * m).sum(1)).sum(),
    "not applied to the rewards": lambda pi, m, r: (filled(pi, m).prod(1) * r.sum(1)).sum(),
    "set to 0": lambda pi, m, r: ((pi * m).prod(1) * (r * m).sum(1)).sum(),
    "own action's probability alone": lambda pi, m, r: (pi * r * m).sum(),
    "weighed by the actions up to it": lambda pi, m, r: (filled(pi, m).cumprod(1) * r * m).sum(),
    "the products run over the texts": lambda pi, m, r: filled(pi, m).prod(0) @ (r * m).sum(0),
    "must be (), got (7,)": lambda pi, m, r: filled(pi, m).prod(1) * (r * m).sum(1),
    "expected\n": lambda pi, m, r: -expected_return_by_loop(pi, m, r),
}


def score_by_autograd(logits, actions):
    logits = logits.clone().requires_grad_(True)
    F.cross_entropy(logits, actions, reduction="sum").backward()
    return -logits.grad


def hot(logits, actions):
    return F.one_hot(actions, logits.shape[1]).float()


SOFTMAX_SCORE = {
    "right": score_by_autograd,
    "right too": lambda z, a: torch.eye(4)[a] - torch.exp(z) / torch.exp(z).sum(1, keepdim=True),
    "the sign is flipped": lambda z, a: torch.softmax(z, 1) - hot(z, a),
    "the normaliser is forgotten": hot,
    "the chosen action is missing": lambda z, a: -torch.softmax(z, 1),
    "the gradient of pi(a)": lambda z, a: torch.softmax(z, 1).gather(1, a[:, None]) * (hot(z, a) - torch.softmax(z, 1)),
    "runs over the batch": lambda z, a: hot(z, a) - torch.softmax(z, 0),
    "a uniform policy is subtracted": lambda z, a: hot(z, a) - 1 / z.shape[1],
    "the logits are subtracted": lambda z, a: hot(z, a) - z,
    "log-probabilities are subtracted": lambda z, a: hot(z, a) - torch.log_softmax(z, 1),
    "only the chosen logit": lambda z, a: hot(z, a) * (1 - torch.softmax(z, 1)),
    "d log pi / d pi": lambda z, a: hot(z, a) / torch.softmax(z, 1),
    "divided by the number of rows": lambda z, a: score_by_autograd(z, a) / len(z),
    "one_hot needs the vocabulary size": lambda z, a: F.one_hot(a) - torch.softmax(z, 1),
    "must be (3, 4), got (3,)": lambda z, a: torch.log_softmax(z, 1).gather(1, a[:, None])[:, 0],
    "expected\n": lambda z, a: torch.log_softmax(z, 1),
}


def estimates_by_loop(scores, rewards, mask):
    rows = []
    for i in range(scores.shape[0]):
        estimate, ahead = torch.zeros(scores.shape[2]), 0.0
        for t in reversed(range(scores.shape[1])):
            if mask[i, t] == 1:
                ahead = ahead + rewards[i, t]
                estimate = estimate + scores[i, t] * ahead
        rows.append(estimate)
    return torch.stack(rows)


def reverse_sum(x):
    return torch.flip(torch.cumsum(torch.flip(x, [1]), 1), [1])


def weighed(scores, weights):
    return (scores * weights[:, :, None]).sum(1)


GRADIENT_ESTIMATES = {
    "right": estimates_by_loop,
    "right too": lambda s, r, m: torch.einsum("ntd,nt->nd", s, reverse_sum(r * m) * m),
    "this is the total return": lambda s, r, m: weighed(s, (r * m).sum(1, keepdim=True) * m),
    "the wrong way": lambda s, r, m: weighed(s, torch.cumsum(r * m, 1) * m),
    "one step too late": lambda s, r, m: weighed(s, (reverse_sum(r * m) - r * m) * m),
    "the sums are still backwards": lambda s, r, m: weighed(s, torch.cumsum(torch.flip(r * m, [1]), 1) * m),
    "only the reward of the same step": lambda s, r, m: weighed(s, r * m),
    "the sign is flipped": lambda s, r, m: -estimates_by_loop(s, r, m),
    "a mean over a text's actions": lambda s, r, m: estimates_by_loop(s, r, m) / m.sum(1, keepdim=True),
    "a mean over all T columns": lambda s, r, m: (s * (reverse_sum(r * m) * m)[:, :, None]).mean(1),
    "the mask is ignored": lambda s, r, m: weighed(s, reverse_sum(r)),
    "not applied to the rewards": lambda s, r, m: weighed(s, reverse_sum(r) * m),
    "divided by the number of texts": lambda s, r, m: estimates_by_loop(s, r, m) / len(s),
    "must be (3, 2), got (2,)": lambda s, r, m: estimates_by_loop(s, r, m).mean(0),
    "expected\n": lambda s, r, m: weighed(s, reverse_sum(r * m) * m) * 2,
}


def by_autograd(objective):
    def gradient(logits, actions, rewards):
        logits = logits.clone().requires_grad_(True)
        objective(logits, actions, rewards).backward()
        return logits.grad

    return gradient


BANDIT_GRADIENT = {
    "right": by_autograd(lambda z, a, r: (torch.log_softmax(z, 0)[a] * r).mean()),
    "right too": by_autograd(lambda z, a, r: (torch.softmax(z, 0)[a] / torch.softmax(z, 0)[a].detach() * r).mean()),
    "right as well": lambda z, a, r: ((torch.eye(4)[a] - torch.softmax(z, 0)) * r[:, None]).mean(0),
    "pi is still differentiated": by_autograd(lambda z, a, r: (torch.softmax(z, 0)[a] * r).mean()),
    "the sign is flipped": by_autograd(lambda z, a, r: -(torch.log_softmax(z, 0)[a] * r).mean()),
    "the sum over the samples": by_autograd(lambda z, a, r: (torch.log_softmax(z, 0)[a] * r).sum()),
    "of all actions are pushed": by_autograd(lambda z, a, r: (torch.log_softmax(z, 0).sum() * r).mean()),
    "the normaliser is forgotten": by_autograd(lambda z, a, r: (z[a] * r).mean()),
    "the rewards are missing": by_autograd(lambda z, a, r: torch.log_softmax(z, 0)[a].mean()),
    "the logarithm of the reward-weighted mean": by_autograd(lambda z, a, r: (torch.softmax(z, 0)[a] * r).mean().log()),
    "divided by itself": by_autograd(lambda z, a, r: (torch.softmax(z, 0)[a] / torch.softmax(z, 0)[a] * r).mean()),
    "the batch mean is subtracted": by_autograd(lambda z, a, r: (torch.log_softmax(z, 0)[a] * (r - r.mean())).mean()),
    "must be (4,), got (5,)": lambda z, a, r: torch.log_softmax(z, 0)[a] * r,
    "expected\n": by_autograd(lambda z, a, r: (torch.softmax(z, 0)[a] * r).sum()),
}

EXERCISES = {
    "expected_return": ("01.1", EXPECTED_RETURN),
    "softmax_score": ("01.2", SOFTMAX_SCORE),
    "gradient_estimates": ("01.3", GRADIENT_ESTIMATES),
    "bandit_gradient": ("01.4", BANDIT_GRADIENT),
}
