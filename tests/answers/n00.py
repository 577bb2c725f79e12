"""Notebook 00: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def weighed(weights, rewards):
    return torch.stack([(w * r).sum() for w, r in zip(weights, rewards)])


EXPECTED_REWARD = {
    "right": lambda z, r: weighed([torch.exp(row) / torch.exp(row).sum() for row in z], r),
    "right too": lambda z, r: torch.einsum("bv,bv->b", torch.softmax(z, 1), r),
    "every action weighs the same": lambda z, r: r.mean(1),
    "only the likeliest action counts": lambda z, r: r[torch.arange(len(r)), torch.argmax(z, 1)],
    "these weights are logits": lambda z, r: weighed(z, r),
    "the weights do not sum to 1": lambda z, r: weighed(torch.exp(z), r),
    "these weights are log-probabilities": lambda z, r: weighed(torch.log_softmax(z, 1), r),
    "the softmax runs over the states": lambda z, r: weighed(torch.softmax(z, 0), r),
    "must be (3,), got ()": lambda z, r: (torch.softmax(z, 1) * r).sum(),
    "must be (3,), got (3, 4)": lambda z, r: torch.softmax(z, 1) * r,
    "divided by the number of actions as well": lambda z, r: (torch.softmax(z, 1) * r).mean(1),
    "expected\n": lambda z, r: weighed(torch.sigmoid(z), r),
}


def tokens_that_count(logprobs, mask):
    return [logprobs[b, t] for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t] == 1]


NEGATIVE_LOG_LIKELIHOOD = {
    "right": lambda p, m: -sum(tokens_that_count(p, m)) / m.sum(),
    "right too": lambda p, m: torch.neg(torch.mean(p[m.bool()])),
    "the sign is flipped": lambda p, m: p[m > 0].mean(),
    "the mask is ignored": lambda p, m: -p.mean(),
    "divided by all positions": lambda p, m: (-p * m).mean(),
    "this is a mean of the texts' means": lambda p, m: -((p * m).sum(1) / m.sum(1)).mean(),
    "this is a sum": lambda p, m: -(p * m).sum(),
    "divided by the number of texts": lambda p, m: -(p * m).sum(1).mean(),
    "this is the perplexity": lambda p, m: torch.exp(-p[m > 0].mean()),
    "these are probabilities": lambda p, m: -torch.exp(p)[m > 0].mean(),
    "must be (), got (3,)": lambda p, m: -(p * m).sum(1) / m.sum(1),
    "no gradient reaches": lambda p, m: -p.detach()[m > 0].mean(),
    "its gradient on `logprobs` is not": lambda p, m: -(p.detach() + 0 * p)[m > 0].mean(),
    "expected\n": lambda p, m: -p[m > 0].median(),
}


def chosen_by_loop(logits, actions):
    result = torch.zeros(actions.shape)
    for b in range(actions.shape[0]):
        for t in range(actions.shape[1]):
            p = torch.exp(logits[b, t]) / torch.exp(logits[b, t]).sum()
            result[b, t] = torch.log(p[actions[b, t]])
    return result


def picked(table, actions):
    return torch.gather(table, 2, actions.unsqueeze(2)).squeeze(2)


CHOSEN_LOGPROBS = {
    "right": chosen_by_loop,
    "right too": lambda z, a: picked(z, a) - torch.logsumexp(z, 2),
    "always 0": lambda z, a: torch.log_softmax(torch.gather(z, 2, a.unsqueeze(2)), 2).squeeze(2),
    "the softmax runs over time": lambda z, a: picked(torch.log_softmax(z, 1), a),
    "gathered along time": lambda z, a: torch.gather(torch.log_softmax(z, 2), 1, a.unsqueeze(2)).squeeze(2),
    "these are raw logits": picked,
    "these are probabilities": lambda z, a: picked(torch.softmax(z, 2), a),
    "this is the likeliest token's": lambda z, a: torch.log_softmax(z, 2).amax(2),
    "the sign is flipped": lambda z, a: -chosen_by_loop(z, a),
    "must be (2, 5), got (2, 5, 1)": lambda z, a: torch.log_softmax(z, 2).gather(2, a.unsqueeze(2)),
    "must be (2, 5), got (2, 5, 2, 5)": lambda z, a: torch.log_softmax(z, 2)[..., a],
    "expected\n": lambda z, a: picked(torch.log_softmax(z, 0), a),
}


def counted(texts, vocab_size):
    counts = torch.zeros(vocab_size, vocab_size)
    for text in texts.tolist():
        for t in range(1, len(text)):
            counts[text[t - 1], text[t]] += 1
    return counts


def counted_at_once(before, after, vocab_size):
    flat = torch.bincount((before * vocab_size + after).flatten(), minlength=vocab_size**2)
    return flat.reshape(vocab_size, vocab_size).float()


def by_row(counts):
    return counts / counts.sum(1, keepdim=True)


BIGRAM_POLICY = {
    "right": lambda x, V: by_row(counted(x, V)),
    "right too": lambda x, V: by_row(counted_at_once(x[:, :-1], x[:, 1:], V)),
    "these are counts": counted,
    "divided by the number of all pairs": lambda x, V: counted(x, V) / counted(x, V).sum(),
    "divided by the column's sum": lambda x, V: counted(x, V) / counted(x, V).sum(0),
    "rows and columns are swapped": lambda x, V: by_row(counted(x, V)).T,
    "broadcast the wrong way": lambda x, V: counted(x, V) / counted(x, V).sum(1),
    "each pair counts once": lambda x, V: by_row((counted(x, V) > 0).float()),
    "the last token of a text is followed by the first of the next": lambda x, V: by_row(
        counted_at_once(x.flatten()[:-1], x.flatten()[1:], V)
    ),
    "the text wraps round": lambda x, V: by_row(counted_at_once(x, x.roll(-1, 1), V)),
    "the state is ignored": lambda x, V: (torch.bincount(x.flatten(), minlength=V) / x.numel()).repeat(V, 1),
    "must be (3, 3), got (3,)": lambda x, V: torch.bincount(x.flatten(), minlength=V) / x.numel(),
    "expected\n": lambda x, V: by_row(counted(x, V) + 1),
}

EXERCISES = {
    "expected_reward": ("00.1", EXPECTED_REWARD),
    "negative_log_likelihood": ("00.2", NEGATIVE_LOG_LIKELIHOOD),
    "chosen_logprobs": ("00.3", CHOSEN_LOGPROBS),
    "bigram_policy": ("00.4", BIGRAM_POLICY),
}
