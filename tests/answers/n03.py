"""Notebook 03: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def others_by_loop(points):
    result = torch.zeros(points.shape)
    for i in range(points.shape[0]):
        for k in range(points.shape[1]):
            result[i, k] = torch.cat([points[i, :k], points[i, k + 1 :]]).mean()
    return result


LEAVE_ONE_OUT = {
    "right": others_by_loop,
    "right too": lambda x: (x.shape[1] * x.mean(1, keepdim=True) - x) / (x.shape[1] - 1),
    "one's own return is inside the mean": lambda x: x.mean(1, keepdim=True).expand_as(x),
    "divided by K, but": lambda x: (x.sum(1, keepdim=True) - x) / x.shape[1],
    "added up, not averaged": lambda x: x.sum(1, keepdim=True) - x,
    "one's own return is still in the sum": lambda x: x.sum(1, keepdim=True).expand_as(x) / (x.shape[1] - 1),
    "runs over the other prompts": lambda x: (x.sum(0) - x) / (len(x) - 1),
    "the other prompts are mixed in": lambda x: (x.sum() - x) / (x.numel() - 1),
    "one mean over everything": lambda x: x.mean().expand_as(x),
    "divided by P - 1": lambda x: (x.sum(1, keepdim=True) - x) / (len(x) - 1),
    "this is the advantage": lambda x: x - others_by_loop(x),
    "this is return minus batch mean": lambda x: x - x.mean(1, keepdim=True),
    "must be (3, 5), got (3, 1)": lambda x: x.mean(1, keepdim=True),
    "expected\n": lambda x: others_by_loop(x).flip(1),
}


def best_constant(scores, returns, p):
    g, s = torch.zeros_like(scores[:, 0]), torch.zeros_like(scores[:, 0])
    for n in range(len(p)):
        for t in range(scores.shape[1]):
            g[n] += scores[n, t] * returns[n, t]
            s[n] += scores[n, t]
    return sum(p[n] * g[n].dot(s[n]) for n in range(len(p))) / sum(p[n] * s[n].dot(s[n]) for n in range(len(p)))


def by_token(scores, returns, p, power=2):
    length = scores.norm(dim=2) ** power * p[:, None]
    return (length * returns).sum() / length.sum()


BEST_CONSTANT = {
    "right": best_constant,
    "right too": lambda s, r, p: torch.linalg.lstsq(
        (p[:, None].sqrt() * s.sum(1)).reshape(-1, 1), (p[:, None].sqrt() * (s * r[..., None]).sum(1)).reshape(-1, 1)
    ).solution[0, 0],
    "each token's score is squared on its own: tokens": by_token,
    "every text weighs the same": lambda s, r, p: best_constant(s, r, torch.ones_like(p)),
    "and the probabilities are ignored as well": lambda s, r, p: by_token(s, r, torch.ones_like(p)),
    "by their length, not by its square": lambda s, r, p: by_token(s, r, p, power=1),
    "the return of the whole text": lambda s, r, p: best_constant(s, r[:, :1].expand_as(r), p),
    "this is the expected return": lambda s, r, p: p @ r[:, 0],
    "the plain average": lambda s, r, p: r[:, 0].mean(),
    "the denominator is missing": lambda s, r, p: best_constant(s, r, p) * (p * s.sum(1).square().sum(1)).sum(),
    "the sign is flipped": lambda *args: -best_constant(*args),
    "this is a mean of quotients": lambda s, r, p: sum(
        p[n] * best_constant(s[n].expand_as(s), r[n].expand_as(r), p) for n in range(len(p))
    ),
    "each vector is averaged first": lambda s, r, p: (
        ((p @ (s * r[..., None]).sum(1)) @ (p @ s.sum(1))) / (p @ s.sum(1)).norm() ** 2
    ),
    "must be (), got (4,)": lambda s, r, p: (
        (p[:, None] * (s * r[..., None]).sum(1) * s.sum(1)).sum(0) / (p[:, None] * s.sum(1) ** 2).sum(0)
    ),
    "must be (), got (1,)": lambda *args: best_constant(*args)[None],
    "expected\n": lambda *args: best_constant(*args) / 2,
}


def loss(logprobs, returns, values, mask, in_policy=None, in_critic=None, sign=-1, critic=0.5, rows=None):
    rows = rows or len(mask)
    in_policy, in_critic = (x if x is not None else y for x, y in ((in_policy, values.detach()), (in_critic, values)))
    total = 0.0
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                total = total + sign * logprobs[b, t] * (returns[b, t] - in_policy[b, t]) / rows
                total = total + critic * (in_critic[b, t] - returns[b, t]) ** 2 / mask.sum()
    return total


LOSS_WITH_BASELINE = {
    "right": loss,
    "right too": lambda p, r, v, m: (
        -torch.einsum("bt,bt,bt->", p, (r - v).detach(), m) / len(m)
        + torch.nn.functional.mse_loss(v[m > 0], r[m > 0]) / 2
    ),
    "a gradient flows through the baseline": lambda p, r, v, m: loss(p, r, v, m, in_policy=v),
    "nothing moves the values any more": lambda p, r, v, m: loss(p, r, v.detach(), m),
    "the wrong half is detached": lambda p, r, v, m: loss(p, r, v, m, in_policy=v, in_critic=v.detach()),
    "the log-probabilities are detached": lambda p, r, v, m: (
        loss(p.detach(), r, v, m, in_policy=v, critic=0) + loss(p.detach() * 0, r, v, m)
    ),
    "lost its 1/2": lambda p, r, v, m: loss(p, r, v, m, critic=1),
    "divided by the rows": lambda p, r, v, m: loss(p, r, v, m, critic=0.5 * m.sum() / len(m)),
    "the value loss is gone": lambda p, r, v, m: loss(p, r, v, m, critic=0),
    "the baseline is gone": lambda p, r, v, m: loss(p, r, v, m, in_policy=torch.zeros_like(v)),
    "the sign of the policy's part is flipped": lambda p, r, v, m: loss(p, r, v, m, sign=1),
    "the mask is ignored": lambda p, r, v, m: loss(p, r, v, torch.ones_like(m)),
    "divided by all actions": lambda p, r, v, m: loss(p, r, v, m, rows=m.sum()),
    "something was detached on the way": lambda p, r, v, m: loss(p.detach(), r, v.detach(), m),
    "must be (), got (3,)": lambda p, r, v, m: -(p * (r - v.detach()) * m).sum(1),
    "gradient on values: expected\n": lambda *args: 2 * loss(*args),
}


def weight_by_loop(new, old, mask, sign=1):
    result = torch.ones(len(mask))
    for b in range(len(mask)):
        for t in range(mask.shape[1]):
            if mask[b, t] == 1:
                result[b] *= (new[b, t].exp() / old[b, t].exp()) ** sign
    return result


def product(logprobs, mask):
    return torch.where(mask == 1, logprobs.exp(), torch.ones(())).prod(1)


def ratios(new, old):
    return new.exp() / old.exp()


TEXT_WEIGHTS = {
    "right": weight_by_loop,
    "right too": lambda p, q, m: torch.where(m == 1, ratios(p, q), torch.ones(())).prod(1),
    "the weight is upside down": lambda p, q, m: weight_by_loop(p, q, m, sign=-1),
    "the mask is ignored": lambda p, q, m: weight_by_loop(p, q, torch.ones(m.shape)),
    "the ratio after the end is set to 0": lambda p, q, m: (ratios(p, q) * m).prod(1),
    "log-probabilities are divided by each other": lambda p, q, m: (p * m).sum(1) / (q * m).sum(1),
    "the ratios are added up": lambda p, q, m: (ratios(p, q) * m).sum(1),
    "the mean ratio of the tokens": lambda p, q, m: (ratios(p, q) * m).sum(1) / m.sum(1),
    "exp is missing": lambda p, q, m: (p * m).sum(1) - (q * m).sum(1),
    "the length is divided out": lambda p, q, m: weight_by_loop(p, q, m) ** (1 / m.sum(1)),
    "the ratio of the last token only": lambda p, q, m: ratios(p, q)[torch.arange(len(m)), m.sum(1).long() - 1],
    "underflow in a text of 400": lambda p, q, m: product(p, m) / product(q, m),
    "0/0 is nan; sum the log-ratios before exp": lambda p, q, m: (p * m).sum(1).exp() / (q * m).sum(1).exp(),
    "must be (3,), got (3, 4)": lambda p, q, m: ratios(p, q) * m,
    "expected\n": lambda p, q, m: weight_by_loop(p, q, m) + 1,
}

EXERCISES = {
    "leave_one_out": ("03.1", LEAVE_ONE_OUT),
    "best_constant": ("03.2", BEST_CONSTANT),
    "loss_with_baseline": ("03.3", LOSS_WITH_BASELINE),
    "text_weights": ("03.4", TEXT_WEIGHTS),
}
