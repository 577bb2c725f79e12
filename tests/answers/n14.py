"""Notebook 14: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def memory(parameters, adapters, weights=None, gradients=None, moments=None, reference=None):
    """Numbers of each column, times four; a column can be replaced by a function of both counts."""
    trained = torch.where(adapters > 0, adapters, parameters)
    usual = parameters + adapters, trained, 2 * trained, parameters * (adapters == 0)
    other = weights, gradients, moments, reference
    columns = [x if change is None else change(parameters, adapters) for x, change in zip(usual, other)]
    return 4 * torch.stack(columns, 1)


def memory_by_loop(parameters, adapters):
    rows = []
    for p, a in zip(parameters.tolist(), adapters.tolist()):
        rows.append([4.0 * p, 4.0 * p, 8.0 * p, 4.0 * p] if a == 0 else [4.0 * (p + a), 4.0 * a, 8.0 * a, 0.0])
    return torch.tensor(rows)


def memory_by_mask(parameters, adapters):
    full = (adapters == 0).long()
    trained = full * parameters + adapters
    bytes_of = torch.zeros(len(parameters), 4, dtype=torch.float64)
    bytes_of[:, 0], bytes_of[:, 3] = 4 * (parameters + adapters), 4 * full * parameters
    bytes_of[:, 1:3] = trained[:, None] * torch.tensor([4, 8])
    return bytes_of


def trains(p, a):
    return torch.where(a > 0, a, p)


MEMORY = {
    "right": memory,
    "right too": memory_by_loop,
    "right by a mask": memory_by_mask,
    "the reference is forgotten": lambda p, a: memory(p, a, reference=lambda p, a: 0 * p),
    "a reference is counted with adapters too": lambda p, a: memory(p, a, reference=lambda p, a: p),
    "the reference is the wrong way round": lambda p, a: memory(p, a, reference=lambda p, a: p * (a > 0)),
    "one moment only": lambda p, a: memory(p, a, moments=trains),
    "the moments hold the gradient as well": lambda p, a: memory(p, a, moments=lambda p, a: 3 * trains(p, a)),
    "the gradients are forgotten": lambda p, a: memory(p, a, gradients=lambda p, a: 0 * p),
    "gradients for frozen weights": lambda p, a: memory(p, a, gradients=lambda p, a: p + a),
    "moments for frozen weights: AdamW": lambda p, a: memory(p, a, moments=lambda p, a: 2 * p + 2 * a),
    "gradients and moments for frozen": lambda p, a: memory(
        p, a, gradients=lambda p, a: p + a, moments=lambda p, a: 2 * (p + a)
    ),
    "none for its adapters": lambda p, a: memory(p, a, gradients=lambda p, a: p, moments=lambda p, a: 2 * p),
    "the adapters' own weights are forgotten": lambda p, a: memory(p, a, weights=lambda p, a: p),
    "only the adapters' weights are counted": lambda p, a: memory(p, a, weights=trains),
    "these are numbers, not bytes": lambda p, a: memory(p, a) // 4,
    "these are bits": lambda p, a: 8 * memory(p, a),
    "two bytes a number": lambda p, a: memory(p, a) / 2,
    "these are gigabytes": lambda p, a: memory(p, a) / 1e9,
    "gradients and moments have changed places": lambda p, a: memory(p, a)[:, [0, 2, 1, 3]],
    "must be (4, 4), got (4,)": lambda p, a: memory(p, a).sum(1),
    "expected\n": lambda p, a: memory(p, a) + 4 * p[:, None],
}


def draw(logprobs, uniforms):
    return (logprobs.exp().cumsum(1) > uniforms[:, None]).int().argmax(1)


def in_range(actions, logprobs):
    return actions.clamp(0, logprobs.shape[1] - 1)


def by_search(logprobs, uniforms):
    summed = logprobs.softmax(-1).cumsum(-1)
    found = torch.searchsorted(summed, (uniforms * summed[:, -1])[:, None], right=True)
    return in_range(found[:, 0], logprobs)


def by_walking(logprobs, uniforms):
    actions = []
    for row, uniform in zip(logprobs.exp().tolist(), uniforms.tolist()):
        word = 0
        while word < len(row) - 1 and uniform >= row[word]:
            uniform, word = uniform - row[word], word + 1
        actions.append(word)
    return torch.tensor(actions)


def sorted_first(logprobs, uniforms):
    descending, words = logprobs.sort(-1, descending=True)
    return words.gather(1, draw(descending, uniforms)[:, None])[:, 0]


DRAW = {
    "right": by_search,
    "right too": by_walking,
    "the word behind it": lambda lp, u: draw(lp, u) + 1,
    "the word before it": lambda lp, u: (lp.exp().cumsum(1) <= u[:, None]).sum(1) - 1,
    "a word of probability 0": lambda lp, u: (lp.exp().cumsum(1) >= u[:, None]).int().argmax(1),
    "the words are sorted by probability first": sorted_first,
    "this is a place among the sorted words": lambda lp, u: draw(lp.sort(-1, descending=True).values, u),
    "always word 0": lambda lp, u: (lp.cumsum(1) > u[:, None]).int().argmax(1),
    "always V, which is no word": lambda lp, u: (lp.cumsum(1) <= u[:, None]).sum(1),
    "always the last word": lambda lp, u: in_range((lp.cumsum(1) <= u[:, None]).sum(1), lp),
    "one uniform for all rows": lambda lp, u: draw(lp, u[:1].expand(len(lp))),
    "the uniforms are ignored": lambda lp, u: lp.argmax(-1),
    "counted from the end": lambda lp, u: lp.shape[1] - 1 - draw(lp.flip(1), u),
    "with each word's own probability": lambda lp, u: (lp.exp() > u[:, None]).int().argmax(1),
    "the sum runs down the batch": lambda lp, u: (lp.exp().cumsum(0) > u[:, None]).int().argmax(1),
    "draw no numbers of your own": lambda lp, u: torch.multinomial(lp.exp(), 1)[:, 0],
    "rounding leaves the sum a little below 1": draw,
    "must be whole numbers": lambda lp, u: by_search(lp, u).float(),
    "must be (7,), got (7, 1)": lambda lp, u: by_search(lp, u)[:, None],
    "expected\n": lambda lp, u: by_search(lp, u) * 2 + 1,
}


def part(x, mask, counted):
    return x[mask > 0].sum() / counted


def part_by_rows(x, mask, counted):
    total = x.new_zeros(())
    for row, n in zip(x, mask.sum(1).int().tolist()):
        total = total + row[:n].sum()
    return total / counted


def row_means(x, mask, counted):
    return ((x * mask).sum(1) / mask.sum(1)).mean()


PART = {
    "right": part,
    "right too": part_by_rows,
    "right by a mask": lambda x, m, n: x.masked_fill(m == 0, 0).div(n).sum(),
    "this is the mean over this process": lambda x, m, n: (x * m).sum() / m.sum(),
    "a mean of each row's mean": row_means,
    "divided by the number of rows": lambda x, m, n: (x * m).sum(1).mean(),
    "divided by all positions": lambda x, m, n: (x * m).mean(),
    "the sum alone": lambda x, m, n: (x * m).sum(),
    "divided twice": lambda x, m, n: x[m > 0].mean() / n,
    "in the other processes": lambda x, m, n: (x * m).sum() / (n - m.sum()),
    "the weight is upside down": lambda x, m, n: x[m > 0].mean() * n / m.sum(),
    "the padding is in the sum": lambda x, m, n: x.sum() / n,
    "this is the mean over everything": lambda x, m, n: x.mean(),
    "the mask is the wrong way round": lambda x, m, n: (x * (1 - m)).sum() / n,
    "0 times nan is nan": lambda x, m, n: (x * m).sum() / n,
    "must give 0, not nan": lambda x, m, n: x[m > 0].mean() * m.sum() / n,
    "no gradient reaches": lambda x, m, n: part(x.detach(), m, n),
    "its gradient on `x` is not": lambda x, m, n: 2 * part(x, m, n) - part(x, m, n).detach(),  # two processes
    "must be (), got (3,)": lambda x, m, n: (x * m).sum(1) / n,
    "expected\n": lambda x, m, n: 3 * part(x, m, n),
}


def pooled(counts, means, variances, weights=None, between=1.0, inside=1.0, over=0):
    counts, means, variances = (x[counts > 0] for x in (counts, means, variances))
    total = counts.sum()
    mean = (counts * means).sum() / total
    share = counts / total if weights is None else weights(counts)
    spread = (share * (inside * variances + between * (means - mean) ** 2)).sum()
    return torch.stack([mean, spread * total / (total - over)])


def pooled_by_squares(counts, means, variances):
    known = counts > 0
    total = counts.sum()
    first = torch.where(known, counts * means, 0).sum() / total
    second = torch.where(known, counts * (variances + means**2), 0).sum() / total
    return torch.stack([first, second - first**2])


def pooled_one_by_one(counts, means, variances):
    """Two at a time (Chan, Golub and LeVeque)."""
    n, mean, squares = 0, 0.0, 0.0
    for k, m, v in zip(counts.tolist(), means.tolist(), variances.tolist()):
        if k:
            gap, both = m - mean, n + k
            mean, squares, n = mean + gap * k / both, squares + v * k + gap**2 * n * k / both, both
    return torch.tensor([mean, squares / n])


def plain(counts, means, variances):
    return torch.stack([means.mean(), variances.mean()])


def equal(counts):
    return torch.full(counts.shape, 1 / len(counts))


def leaking(counts, means, variances):
    mean = (counts * means).sum() / counts.sum()
    return torch.stack([mean, (counts * (variances + (means - mean) ** 2)).sum() / counts.sum()])


POOLED = {
    "right": pooled,
    "right too": pooled_by_squares,
    "right one by one": pooled_one_by_one,
    "plain averages of the processes": plain,
    "plain averages, and the spread": lambda n, m, v: torch.stack([m.mean(), v.mean() + m.var(correction=0)]),
    "the mean weighs every process the same": lambda n, m, v: torch.stack([m.mean(), pooled(n, m, v)[1]]),
    "the spread is taken about it": lambda n, m, v: torch.stack(
        [m.mean(), (n * (v + (m - m.mean()) ** 2)).sum() / n.sum()]
    ),
    "the spread between the means is forgotten": lambda *x: pooled(*x, between=0),
    "the variances weigh the same: weigh them too": lambda *x: pooled(*x, weights=equal, between=0),
    "but in the variance every process weighs the same": lambda *x: pooled(*x, weights=equal),
    "this is only the spread between the means": lambda *x: pooled(*x, inside=0),
    "is subtracted: it comes on top": lambda *x: pooled(*x, between=-1),
    "divided by n - 1": lambda *x: pooled(*x, over=1),
    "this is the standard deviation": lambda *x: pooled(*x) ** torch.tensor([1.0, 0.5]),
    "the mean of the squares": lambda *x: pooled(*x) + torch.stack([0 * x[1][0], pooled(*x)[0] ** 2]),
    "the variances given are squared again": lambda n, m, v: pooled(n, m, v**2),
    "count n - 1 times": lambda n, m, v: pooled(n, m, v * (n - 1) / n),
    "sums over all numbers": lambda *x: pooled(*x) * x[0].sum(),
    "mean and variance have changed places": lambda *x: pooled(*x).flip(0),
    "a process in which nothing counts leaks": leaking,
    "must be (2,), got ()": lambda *x: pooled(*x)[1],
    "expected\n": lambda *x: 3 * pooled(*x),
}

EXERCISES = {
    "memory": ("14.1", MEMORY),
    "draw": ("14.2", DRAW),
    "part": ("14.3", PART),
    "pooled": ("14.4", POOLED),
}
KIND = {"draw": "integer"}
