"""Notebook 04: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def backwards(rewards, mask, gamma, use_mask=True):
    """The recursion G_t = r_t + gamma G_{t+1} from the right."""
    result, following = torch.zeros(rewards.shape), torch.zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = rewards[:, t] + gamma * following
        if use_mask:
            following = following * mask[:, t]
        result[:, t] = following
    return result


def by_matrix(rewards, mask, weight, keep=torch.triu):
    """Each row of rewards times a matrix of weight(k - t, k, t)."""
    k = torch.arange(5, dtype=rewards.dtype)
    t = k[:, None]
    return (rewards * mask) @ keep(weight(k - t, k, t)).T * mask


def ones(*shape):
    return torch.ones(shape)


DISCOUNTED_REWARD_TO_GO = {
    "right": backwards,
    "right too": lambda r, m, g: by_matrix(r, m, lambda ahead, k, t: g**ahead),
    "counts gamma from the beginning": lambda r, m, g: by_matrix(r, m, lambda ahead, k, t: (g**k).expand(5, 5)),
    "this is the total of the text": lambda r, m, g: (r * m * g ** torch.arange(5)).sum(1, keepdim=True) * m,
    "this is the undiscounted total": lambda r, m, g: (r * m).sum(1, keepdim=True) * m,
    "only one step ahead": lambda r, m, g: by_matrix(r, m, lambda ahead, k, t: (ahead < 2) * g ** ahead.clamp(0)),
    "the sum runs backwards: ": lambda r, m, g: by_matrix(r, m, lambda ahead, k, t: g**-ahead, torch.tril),
    "with gamma counted from the beginning": lambda r, m, g: (r * m * g ** torch.arange(5)).cumsum(1) * m,
    "the columns run backwards": lambda r, m, g: backwards(r, m, g).flip(1),
    "gamma is missing": lambda r, m, g: (r * m).flip(1).cumsum(1).flip(1) * m,
    "everything is discounted once too often": lambda r, m, g: g * backwards(r, m, g),
    "the action's own reward is left out": lambda r, m, g: (backwards(r, m, g) - r) * m,
    "the discount is the wrong way round": lambda r, m, g: by_matrix(r, m, lambda ahead, k, t: g ** (4 - ahead)),
    "the mask is ignored": lambda r, m, g: backwards(r, m, g, use_mask=False),
    "masking the result comes too late": lambda r, m, g: backwards(r, m, g, use_mask=False) * m,
    "must be (3, 5), got (3,)": lambda r, m, g: backwards(r, m, g)[:, 0],
    "expected\n": lambda r, m, g: backwards(r, m, g) * 2,
}


def shaped(rewards, potentials, mask, gamma, ahead=1.0, back=1.0, pays=1.0):
    result = torch.zeros(mask.shape)
    for b in range(len(mask)):
        length = int(mask[b].sum())
        for t in range(length):
            phi_next = potentials[b, t + 1] if t < length - 1 else 0
            result[b, t] = pays * rewards[b, t] + ahead * gamma * phi_next - back * potentials[b, t]
    return result


def shaped_by_columns(r, phi, m, g, phi_masked=True):
    phi = phi * m if phi_masked else phi
    return r + g * torch.nn.functional.pad(phi[:, 1:], (0, 1)) - phi


def is_last(mask):
    return mask.cumsum(1) * mask == mask.sum(1, keepdim=True)


POTENTIAL_SHAPING = {
    "right": shaped,
    "right too": lambda r, phi, m, g: shaped_by_columns(r, phi, m, g) * m,
    "the signs are flipped": lambda *a: shaped(*a, ahead=-1, back=-1),
    "nothing is paid back": lambda *a: shaped(*a, back=0),
    "only the present potential is charged": lambda *a: shaped(*a, ahead=0),
    "gamma is missing before": lambda r, phi, m, g: shaped(r, phi, m, 1.0),
    "both potentials are discounted": lambda r, phi, m, g: shaped(r, phi, m, g, back=g),
    "the rewards themselves are gone": lambda *a: shaped(*a, pays=0),
    "potentials after the end leak in": lambda *a: shaped_by_columns(*a, phi_masked=False) * a[2],
    "the mask is ignored": lambda *a: shaped_by_columns(*a, phi_masked=False),
    "this looks back": lambda r, phi, m, g: (r + g * torch.nn.functional.pad(phi[:, :-1], (1, 0)) - phi) * m,
    "the last action is not charged": lambda *a: torch.where(is_last(a[2]), a[0], shaped(*a)),
    "one step late": lambda r, phi, m, g: r * m + (g * phi - torch.nn.functional.pad(phi, (1, 0))[:, :-1]) * m,
    "after the end nothing is paid: multiply the result": lambda r, phi, m, g: shaped_by_columns(r, phi, m, g),
    "gamma is on the rewards as well": lambda r, phi, m, g: shaped(r, phi, m, g, pays=g),
    "roll wraps round, and": lambda r, phi, m, g: (r + g * phi.roll(-1, 1) - phi) * m,
    "roll wraps round:": lambda r, phi, m, g: (r + g * (phi * m).roll(-1, 1) - phi) * m,
    "must be (3, 5), got (3, 4)": lambda *a: shaped(*a)[:, :4],
    "expected\n": lambda *a: shaped(*a) * 2,
}


def by_autograd(logits, targets):
    z = logits.clone().requires_grad_()
    z.softmax(-1)[torch.arange(len(targets)), targets].sum().backward()
    return z.grad


def by_formula(logits, targets, factor=None, sign=1, subtract=True, pi=None):
    pi = torch.softmax(logits, 1) if pi is None else pi
    right = torch.zeros(pi.shape)
    right[torch.arange(len(targets)), targets] = 1
    chance = (pi * right).sum(1, keepdim=True)
    return sign * (chance if factor is None else factor(pi, chance)) * (right - pi if subtract else right)


def cross_entropy_gradient(logits, targets):
    z = logits.clone().requires_grad_()
    torch.nn.functional.cross_entropy(z, targets).backward()
    return z.grad


NEXT_TOKEN_GRADIENT = {
    "right": by_autograd,
    "right too": by_formula,
    "gradient of the cross-entropy loss": cross_entropy_gradient,
    "gradient of the likelihood": lambda *a: by_formula(*a, factor=lambda pi, chance: 1),
    "the sign is flipped": lambda *a: by_formula(*a, sign=-1),
    "the factor is pi(v)": lambda *a: by_formula(*a, factor=lambda pi, chance: pi),
    "only the right token has a gradient": lambda *a: by_formula(
        *a, factor=lambda pi, chance: chance * (1 - chance), subtract=False
    ),
    "the factor is squared": lambda *a: by_formula(*a, factor=lambda pi, chance: chance**2),
    "the probabilities are not subtracted": lambda *a: by_formula(*a, subtract=False),
    "divided by the number of rows": lambda logits, targets: by_autograd(logits, targets) / len(logits),
    "the softmax runs over the states": lambda z, y: by_formula(z, y, pi=z.softmax(0)),
    "the factor is log pi(y)": lambda *a: by_formula(*a, factor=lambda pi, chance: chance.log()),
    "the factor is 1 - pi(y)": lambda *a: by_formula(*a, factor=lambda pi, chance: 1 - chance),
    "one_hot needs the vocabulary size": lambda z, y: (
        z.softmax(1).gather(1, y[:, None]) * (torch.nn.functional.one_hot(y) - z.softmax(1))
    ),
    "must be (4, 5), got (4,)": lambda *a: by_formula(*a).sum(1),
    "expected\n": lambda *a: by_formula(*a) * 2,
}


def growth(before, scores):
    after = torch.cat([before[:, 1:], scores[:, None]], dim=1)
    return after - before


def growth_by_loop(before, scores):
    result = torch.zeros(before.shape)
    for b in range(before.shape[0]):
        row = [*before[b].tolist(), scores[b].item()]
        for t in range(before.shape[1]):
            result[b, t] = row[t + 1] - row[t]
    return result


def with_last(before, scores, last):
    result = growth(before, scores)
    result[:, -1] = last
    return result


def late(before, scores):
    return torch.diff(before, dim=1, prepend=before[:, :1])


PAID_AS_IT_GROWS = {
    "right": growth,
    "right too": growth_by_loop,
    "one token late: action": late,
    "all the others are still one token late": lambda before, scores: torch.cat(
        [late(before, scores)[:, :-1], scores[:, None] - before[:, -1:]], dim=1
    ),
    "the sum is right now": lambda before, scores: (
        late(before, scores) + torch.nn.functional.pad(scores[:, None] - before[:, -1:], (4, 0))
    ),
    "one token early": lambda before, scores: torch.nn.functional.pad(growth(before, scores)[:, 1:], (0, 1)),
    "the last action is not paid": lambda before, scores: torch.diff(before, dim=1, append=before[:, -1:]),
    "the last action gets the whole score": lambda before, scores: with_last(before, scores, scores),
    "everything is taken back at the end": lambda before, scores: torch.diff(before, dim=1, append=0 * before[:, :1]),
    "roll brings the first column round": lambda before, scores: before.roll(-1, 1) - before,
    "the first action is paid for the score before it": lambda before, scores: torch.diff(
        torch.cat([before[:, 1:], scores[:, None]], 1), prepend=torch.zeros(len(before), 1)
    ),
    "this is what the rest of the text adds": lambda before, scores: scores[:, None] - before,
    "these are running scores": lambda before, scores: torch.cat([before[:, 1:], scores[:, None]], dim=1),
    "the sign is flipped": lambda before, scores: -growth(before, scores),
    "everything is paid at the end": lambda before, scores: (
        with_last(before, scores, 0) * 0 + with_last(before * 0, scores, scores)
    ),
    "must be (3, 5), got (3, 4)": lambda before, scores: torch.diff(before, dim=1),
    "expected\n": lambda before, scores: growth(before, scores) * 2,
}

EXERCISES = {
    "discounted_reward_to_go": ("04.1", DISCOUNTED_REWARD_TO_GO),
    "potential_shaping": ("04.2", POTENTIAL_SHAPING),
    "next_token_gradient": ("04.3", NEXT_TOKEN_GRADIENT),
    "paid_as_it_grows": ("04.4", PAID_AS_IT_GROWS),
}
