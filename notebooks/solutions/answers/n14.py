"""Worked answers to the exercises of notebook 14."""

import torch


# Ask of each number whether it trains. If all weights do, each has a gradient and two moments, and the reference is a
# copy of its own. With adapters only they have, the model is kept once, and the reference is that model without them.
def my_memory(parameters, adapters):
    trained = torch.where(adapters > 0, adapters, parameters)
    copied = torch.where(adapters > 0, 0, parameters)
    return 4 * torch.stack([parameters + adapters, trained, 2 * trained, copied], dim=-1)


# The words share the line from 0 to 1, each as much of it as it is likely. How many of them end at or before the
# uniform? That many are passed, and the next one is drawn. The clamp is for a uniform behind a rounded sum.
def my_draw(logprobs, uniforms):
    passed = logprobs.exp().cumsum(-1) <= uniforms[:, None]
    return passed.sum(-1).clamp(max=logprobs.shape[-1] - 1)


# Each process sums what it has, and all divide by the same number. `where` and not `x * mask`: nothing that stands in
# the padding comes through, neither into the sum nor into the gradient.
def my_part(x, mask, counted):
    return torch.where(mask > 0, x, 0).sum() / counted


# A process that has counted nothing is left out first. Then every number is as far from the common mean as its own mean
# is, plus what it is from that: the variance is that inside the processes and that between them, weighed by the counts.
def my_pooled(counts, means, variances):
    counts, means, variances = (x[counts > 0] for x in (counts, means, variances))
    share = counts / counts.sum()
    mean = (share * means).sum()
    variance = (share * (variances + (means - mean) ** 2)).sum()
    return torch.stack([mean, variance])
