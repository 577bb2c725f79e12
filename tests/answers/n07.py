"""Notebook 07: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import math

import torch


def shaped(scores, logprobs, ref, mask, beta, sign=-1, where="last", keep_mask=True):
    rewards = torch.zeros(mask.shape)
    for b in range(len(mask)):
        length = int(mask[b].sum())
        for t in range(mask.shape[1]):
            if t < length or not keep_mask:
                rewards[b, t] += sign * beta * (logprobs[b, t] - ref[b, t])
            paid = {"last": t == length - 1, "column": t == mask.shape[1] - 1, "late": t == length}
            if paid.get(where, where == "all" and t < length):
                rewards[b, t] += scores[b]
    return rewards


KL_SHAPED_REWARDS = {
    "right": shaped,
    "right too": lambda s, p, q, m, beta: (
        m * beta * (q - p) + torch.nn.functional.one_hot(m.sum(1).long() - 1, 4) * s[:, None]
    ),
    "the sign of the KL term is flipped": lambda *a: shaped(*a, sign=1),
    "lands on the last column": lambda *a: shaped(*a, where="column"),
    "paid at every action": lambda *a: shaped(*a, where="all"),
    "one action too late": lambda *a: shaped(*a, where="late"),
    "roll wraps round": lambda s, p, q, m, beta: m * beta * (q - p) + s[:, None] * (m - m.roll(-1, 1)).clamp(min=0),
    "the score is missing": lambda *a: shaped(*a, where="never"),
    "the mask is ignored": lambda *a: shaped(*a, keep_mask=False),
    "the KL term is missing": lambda *a: shaped(*a, sign=0),
    "must be (3, 4), got (3,)": lambda *a: shaped(*a).sum(1),
    "expected\n": lambda *a: shaped(*a) * 2,
}


def gae_backwards(rewards, values, mask, gamma, lam, carry=None, next_gamma=None, use_mask=True):
    carry = gamma * lam if carry is None else carry
    next_gamma = gamma if next_gamma is None else next_gamma
    mask = mask if use_mask else torch.ones_like(mask)
    advantages, later, next_value = torch.zeros(mask.shape), torch.zeros(len(mask)), torch.zeros(len(mask))
    for t in range(mask.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + next_gamma * next_value - values[:, t]
        later = (delta + carry * later) * mask[:, t]
        advantages[:, t], next_value = later, values[:, t] * mask[:, t]
    return advantages


GAE = {
    "right": gae_backwards,
    "right too": lambda r, v, m, gamma, lam: gae_backwards(r.double(), v.double(), m.double(), gamma, lam).double(),
    "the mask is ignored: values": lambda *a: gae_backwards(*a, use_mask=False),
    "lam is missing": lambda r, v, m, gamma, lam: gae_backwards(r, v, m, gamma, lam, carry=gamma),
    "gamma is missing": lambda r, v, m, gamma, lam: gae_backwards(r, v, m, gamma, lam, carry=lam),
    "only the one-step errors": lambda *a: gae_backwards(*a, carry=0),
    "V(next state) is missing": lambda *a: gae_backwards(*a, next_gamma=0),
    "V(next state) is not discounted": lambda *a: gae_backwards(*a, next_gamma=1),
    "the sign is flipped": lambda *a: -gae_backwards(*a),
    "must be (2, 5), got (2, 4)": lambda *a: gae_backwards(*a)[:, :4],
    "expected\n": lambda *a: gae_backwards(*a) * 2,
}


def returns_without_baseline(rewards, values, mask, gamma, lam):
    """The recursion with V(next state) in the error but without V(this state)."""
    advantages, later, next_value = torch.zeros(mask.shape), torch.zeros(len(mask)), torch.zeros(len(mask))
    for t in reversed(range(5)):
        later = (rewards[:, t] + gamma * next_value + gamma * lam * later) * mask[:, t]
        advantages[:, t], next_value = later, values[:, t] * mask[:, t]
    return advantages


GAE["V at the present state is missing"] = returns_without_baseline
GAE["these are returns, advantages plus values"] = lambda r, v, m, *a: gae_backwards(r, v, m, *a) + v * m
GAE["masking the result comes too late"] = lambda r, v, m, *a: gae_backwards(r, v, m, *a, use_mask=False) * m


def surrogate(new, old, advantages, mask, eps, choose=torch.minimum, counted=True, over=None, sign=-1):
    ratio = torch.exp(new) / torch.exp(old)
    inside = torch.where(ratio > 1 + eps, 1 + eps, torch.where(ratio < 1 - eps, 1 - eps, ratio))
    terms = choose(ratio * advantages, inside * advantages)
    terms = terms * mask if counted else terms
    return sign * terms.sum() / (over or (mask.sum() if counted else mask.numel()))


CLIPPED_SURROGATE_LOSS = {
    "right": surrogate,
    "right too": lambda new, old, a, m, eps: torch.max(
        -(new - old).exp() * a, -(new - old).exp().clamp(1 - eps, 1 + eps) * a
    )[m > 0].mean(),
    "max instead of min": lambda *a: surrogate(*a, choose=torch.maximum),
    "the sign is flipped": lambda *a: surrogate(*a, sign=1),
    "clipped only": lambda *a: surrogate(*a, choose=lambda free, clipped: clipped),
    "no clipping at all": lambda *a: surrogate(*a, choose=lambda free, clipped: free),
    "the min is over the ratios": lambda new, old, a, m, eps: surrogate(
        torch.minimum(new, old + math.log(1 + eps)), old, a, m, eps, choose=lambda free, clipped: free
    ),
    "the product is clipped": lambda new, old, a, m, eps: (
        -(torch.minimum((new - old).exp() * a, ((new - old).exp() * a).clamp(1 - eps, 1 + eps)) * m).sum() / m.sum()
    ),
    "clip_eps is ignored": lambda new, old, a, m, eps: surrogate(new, old, a, m, 0.2),
    "no gradient reaches the log-probabilities": lambda new, *a: surrogate(new.detach(), *a),
    "the mask is ignored": lambda *a: surrogate(*a, counted=False),
    "divided by all positions": lambda *a: surrogate(*a, over=a[3].numel()),
    "a sum where the mean": lambda *a: surrogate(*a, over=1),
    "must be (), got (2, 4)": lambda new, old, a, m, eps: -(new - old).exp() * a * m,
    "expected a tensor, got float": lambda *a: surrogate(*a).item(),
    "expected\n": lambda *a: surrogate(*a) * 2,
}


def lengths_of(prompts, responses):
    return torch.tensor([float(len(r)) for r in responses])


REWARD = {
    "right": lengths_of,
    "right too": lambda prompts, responses: torch.tensor(
        [p.count("e") + len(set(r)) / 7 for p, r in zip(prompts, responses)]
    ),
    "got (4,) torch.int64": lambda prompts, responses: torch.tensor([len(r) for r in responses]),
    "got (4, 1)": lambda prompts, responses: lengths_of(prompts, responses)[:, None],
    "got ()": lambda prompts, responses: lengths_of(prompts, responses).mean(),
    "got list": lambda prompts, responses: [float(len(r)) for r in responses],
    "must be finite": lambda prompts, responses: 1 / lengths_of(prompts, responses),
    "carries no gradient": lambda prompts, responses: lengths_of(prompts, responses).requires_grad_(),
    "depends on the other responses in the batch": lambda prompts, responses: (
        lengths_of(prompts, responses) - lengths_of(prompts, responses).mean()
    ),
    "or on chance": lambda prompts, responses: torch.rand(len(responses)),
}

EXERCISES = {
    "kl_shaped_rewards": ("07.1", KL_SHAPED_REWARDS),
    "gae": ("07.2", GAE),
    "clipped_surrogate_loss": ("07.3", CLIPPED_SURROGATE_LOSS),
    "reward": ("07.4", REWARD),
}
OWN_COMPARISON = {"reward"}  # checks that do not compare with one right tensor through `verdict`
