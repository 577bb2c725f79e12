"""Notebook 07: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import math

import torch


def shaped(scores, logprobs, ref, mask, beta, sign=-1, where="last", keep_mask=True, add=True):
    rewards = torch.zeros(mask.shape)
    for b in range(len(mask)):
        length = int(mask[b].sum())
        for t in range(mask.shape[1]):
            if t < length or not keep_mask:
                rewards[b, t] += sign * beta * (logprobs[b, t] - ref[b, t])
            paid = {"last": length - 1, "column": mask.shape[1] - 1, "late": length, "early": length - 2}
            if t == paid.get(where, t if where == "all" and t < length else None):
                rewards[b, t] = scores[b] + (rewards[b, t] if add else 0)
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
    "one action too early": lambda *a: shaped(*a, where="early"),
    "the score is spread": lambda s, p, q, m, beta: (m * s[:, None]) / m.sum(1, keepdim=True) - m * beta * (p - q),
    "the score replaces": lambda *a: shaped(*a, add=False),
    "kl_coef is forgotten": lambda s, p, q, m, beta: shaped(s, p, q, m, 1.0),
    "roll wraps round": lambda s, p, q, m, beta: m * beta * (q - p) + s[:, None] * (m - m.roll(-1, 1)).clamp(min=0),
    "the score is missing": lambda *a: shaped(*a, where="never"),
    "the mask is ignored": lambda *a: shaped(*a, keep_mask=False),
    "the KL term is missing": lambda *a: shaped(*a, sign=0),
    "must be (3, 4), got (3,)": lambda *a: shaped(*a).sum(1),
    "expected\n": lambda *a: shaped(*a) * 2,
}


def gae_backwards(
    rewards, values, mask, gamma, lam, carry=None, next_gamma=None, use_mask=True, mask_value=True, mask_carried=True
):
    carry = gamma * lam if carry is None else carry
    next_gamma = gamma if next_gamma is None else next_gamma
    mask = mask if use_mask else torch.ones_like(mask)
    advantages, later, next_value = torch.zeros(mask.shape), torch.zeros(len(mask)), torch.zeros(len(mask))
    for t in range(mask.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + next_gamma * next_value - values[:, t]
        later = (delta + carry * later) * (mask[:, t] if mask_carried else 1)
        advantages[:, t], next_value = later, values[:, t] * (mask[:, t] if mask_value else 1)
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
    "the value of the padding leaks in": lambda *a: gae_backwards(*a, mask_value=False),
    "the carried advantage crosses the end: ": lambda *a: gae_backwards(*a, mask_carried=False),
    "the carried advantage crosses the end, and": lambda *a: gae_backwards(*a, mask_carried=False) * a[2],
    "V at the present state stands where": lambda r, v, m, gamma, lam: gae_backwards(
        r + (gamma - 1) * v, torch.zeros_like(v), m, gamma, lam
    ),
    "V at the present state is added": lambda r, v, m, gamma, lam: gae_backwards(r + 2 * v, v, m, gamma, lam),
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
GAE["the response; masking the result comes too late"] = lambda r, v, m, *a: (
    gae_backwards(r, v, m, *a, use_mask=False) * m
)


def surrogate(new, old, advantages, mask, eps, choose=torch.minimum, counted=True, over=None, sign=-1, quiet=True):
    ratio = torch.exp(torch.where(mask > 0, new - old, 0)) if counted and quiet else torch.exp(new - old)
    inside = torch.where(ratio > 1 + eps, 1 + eps, torch.where(ratio < 1 - eps, 1 - eps, ratio))
    terms = choose(ratio * advantages, inside * advantages)
    terms = terms * mask if counted else terms
    return sign * terms.sum() / (over or (mask.sum() if counted else mask.numel()))


def picked_first(new, old, advantages, eps):
    ratio = new.exp() / old.exp()
    return torch.max(-ratio * advantages, -ratio.clamp(1 - eps, 1 + eps) * advantages).mean()


def mean_of_means(*args):
    return torch.stack([surrogate(*(x[b] for x in args[:-1]), args[-1]) for b in range(len(args[0]))]).mean()


def half_detached(new, old, advantages, mask, eps):
    ratio = torch.exp((new - old) * mask)
    inside = ratio.clamp(1 - eps, 1 + eps)
    return -(torch.minimum(ratio.detach() * advantages, inside * advantages) * mask).sum() / mask.sum()


CLIPPED_SURROGATE_LOSS = {
    "right": surrogate,
    "right too": lambda new, old, a, m, eps: picked_first(new[m > 0], old[m > 0], a[m > 0], eps),
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
    "the ratio is upside down": lambda new, old, *rest: surrogate(old, new, *rest),
    "in the sum, though not in the count": lambda *a: surrogate(*a, counted=False, over=a[3].sum()),
    "divided by the number of rows": lambda *a: surrogate(*a, over=len(a[3])),
    "a mean of each row's mean": mean_of_means,
    "the number is right, but its gradient": half_detached,
    "its gradient on `logprobs` is not": lambda new, *a: surrogate(new, *a).detach() + 0 * new.sum(),
    "a masked action with a log-ratio of 1000": lambda *a: surrogate(*a, quiet=False),
    "make the masked log-ratios 0 before exp": lambda new, old, a, m, eps: torch.max(
        -(new - old).exp() * a, -(new - old).exp().clamp(1 - eps, 1 + eps) * a
    )[m > 0].mean(),
    "no gradient reaches": lambda new, *a: surrogate(new.detach(), *a),
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
    "an empty response must get a finite score": lambda prompts, responses: torch.tensor(
        [len(set(r.split())) / len(r.split()) for r in responses]
    ),
    "only the prompt is scored": lambda prompts, responses: lengths_of(prompts, prompts),
    "or on chance": lambda prompts, responses: torch.rand(len(responses)),
}

EXERCISES = {
    "kl_shaped_rewards": ("07.1", KL_SHAPED_REWARDS),
    "gae": ("07.2", GAE),
    "clipped_surrogate_loss": ("07.3", CLIPPED_SURROGATE_LOSS),
    "reward": ("07.4", REWARD),
}
OWN_COMPARISON = {"reward"}  # checks that do not compare with one right tensor through `verdict`
