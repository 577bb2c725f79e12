"""Notebook 09: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def f_by_loop(matches, response_length, reference_length, beta):
    scores = []
    for m, n, k in zip(matches.tolist(), response_length.tolist(), reference_length.tolist()):
        # 1 / F is a weighted mean of 1 / P and 1 / R
        scores.append(0.0 if m == 0 else (1 + beta**2) / (n / m + beta**2 * k / m))
    return torch.tensor(scores)


F_SCORE = {
    "right": f_by_loop,
    "right too": lambda m, n, k, beta: (1 + beta**2) * m / (beta**2 * k + n),
    "0 divided by 0": lambda m, n, k, beta: (1 + beta**2) * (m / n) * (m / k) / (beta**2 * m / n + m / k),
    "this is recall alone": lambda m, n, k, beta: m / k,
    "this is precision alone": lambda m, n, k, beta: m / n,
    "this is the plain average": lambda m, n, k, beta: (m / n + m / k) / 2,
    "beta stands on the wrong side": lambda m, n, k, beta: (1 + beta**2) * m / (beta**2 * n + k),
    "the factor 1 + beta^2": lambda m, n, k, beta: m / (beta**2 * k + n),
    "beta is not squared": lambda m, n, k, beta: (1 + beta) * m / (beta * k + n),
    "beta is ignored": lambda m, n, k, beta: 2 * m / (k + n),
    "must be (5,), got ()": lambda m, n, k, beta: f_by_loop(m, n, k, beta).mean(),
    "expected\n": lambda m, n, k, beta: m / (m + n + k),
}


def gate_by_loop(scores, passed, otherwise):
    return torch.stack([s if p == 1 else torch.tensor(otherwise) for s, p in zip(scores, passed)])


GATED_SCORES = {
    "right": gate_by_loop,
    "right too": lambda s, p, other: s * p + other * (1 - p),
    "a product is no gate": lambda s, p, other: s * p,
    "this is a term of a sum": lambda s, p, other: s + other * (1 - p),
    "the gate is inverted": lambda s, p, other: torch.where(p.bool(), torch.tensor(other), s),
    "the filter is ignored": lambda s, p, other: s,
    "all scores are cut off": lambda s, p, other: s.clamp(max=other),
    "one that was still lower keeps it": lambda s, p, other: torch.where(p > 0, s, s.clamp(max=other)),
    "one that was higher keeps it": lambda s, p, other: torch.where(p > 0, s, s.clamp(min=other)),
    "must be (5,), got (2,)": lambda s, p, other: s[p == 1],
    "expected\n": lambda s, p, other: torch.where(p.bool(), s, torch.tensor(0.5)),
}


def blocked_by_loop(logits, actions, blocked):
    result = torch.zeros(actions.shape)
    for b in range(actions.shape[0]):
        for t in range(actions.shape[1]):
            weights = logits[b, t].exp() * (~blocked)
            result[b, t] = torch.log(weights[actions[b, t]] / weights.sum())
    return result


def chosen(table, actions):
    return torch.gather(table, 2, actions[:, :, None]).squeeze(2)


BLOCKED_LOGPROBS = {
    "right": blocked_by_loop,
    "right too": lambda z, a, out: chosen(torch.log_softmax(torch.where(out, -torch.inf, z), 2), a),
    "the block is ignored": lambda z, a, out: chosen(torch.log_softmax(z, 2), a),
    "must become likelier": lambda z, a, out: (
        chosen(torch.log_softmax(z, 2), a) + torch.log(1 - torch.softmax(z, 2)[..., out].sum(2))
    ),
    "in yours over the places": lambda z, a, out: chosen(torch.log_softmax(z.masked_fill(out, -torch.inf), 1), a),
    "in yours over the texts": lambda z, a, out: chosen(torch.log_softmax(z.masked_fill(out, -torch.inf), 0), a),
    "every allowed token is banned": lambda z, a, out: chosen(torch.log_softmax(z.masked_fill(~out, -torch.inf), 2), a),
    "a logit of 0 is no ban": lambda z, a, out: chosen(torch.log_softmax(z * ~out, 2), a),
    "the mask is inverted": lambda z, a, out: chosen(z - torch.logsumexp(z[..., out], 2, keepdim=True), a),
    "these are probabilities": lambda z, a, out: blocked_by_loop(z, a, out).exp(),
    "these are raw logits": lambda z, a, out: chosen(z, a),
    "must be (2, 3), got (2, 3, 5)": lambda z, a, out: torch.log_softmax(torch.where(out, -torch.inf, z), 2),
    "expected\n": lambda z, a, out: -blocked_by_loop(z, a, out),
}


def coverage_by_loop(counts):
    return torch.tensor([len([n for n in row if n >= 1]) / len(row) for row in counts.tolist()])


COVERAGE_SCORE = {
    "right": coverage_by_loop,
    "right too": lambda counts: counts.clamp(max=1).mean(1),
    "mentions are counted": lambda counts: counts.mean(1),
    "bounded too late": lambda counts: counts.mean(1).clamp(max=1),
    "said twice is still there": lambda counts: (counts == 1).float().mean(1),
    "one fact is enough": lambda counts: (counts.sum(1) > 0).float(),
    "all or nothing": lambda counts: (counts > 0).all(1).float(),
    "not divided": lambda counts: (counts > 0).sum(1).float(),
    "divided by the mentions": lambda counts: (counts > 0).sum(1) / counts.sum(1).clamp(min=1),
    "must be (4,), got (4, 4)": lambda counts: (counts > 0).float(),
    "expected\n": lambda counts: -coverage_by_loop(counts),
}

EXERCISES = {
    "f_score": ("09.1", F_SCORE),
    "gated_scores": ("09.2", GATED_SCORES),
    "blocked_logprobs": ("09.3", BLOCKED_LOGPROBS),
    "coverage_score": ("09.4", COVERAGE_SCORE),
}
