"""Worked answers to the exercises of notebook 08."""

import torch


# The model says that the preferred text wins with probability sigmoid(difference). Minus the logarithm of that is the
# loss of one verdict. `logsigmoid` is the two in one, without overflow for large differences.
def my_bradley_terry_loss(preferred, rejected):
    return -torch.nn.functional.logsigmoid(preferred - rejected).mean()


# Those who prefer the first text, a share p, contribute -log sigmoid(d); the others, a share 1 - p, contribute
# -log sigmoid(-d), the chance of the opposite verdict.
def my_soft_label_loss(first, second, probability):
    d = first - second
    agree, disagree = (torch.nn.functional.logsigmoid(x) for x in (d, -d))
    return -(probability * agree + (1 - probability) * disagree).mean()


# `hidden[:, -1]` is the last column of the batch. In a row that is shorter than the longest it has read padding, so the
# score depends on how long the neighbours are. A row with n real tokens ends at position n - 1.
def my_last_state(hidden, mask):
    last = mask.sum(1).long() - 1  # [N]
    return hidden[torch.arange(len(hidden)), last]


# The models stand in dimension 0. Where they agree the bound is their mean; where they do not, it is lower.
def my_lower_bound(scores, k):
    return scores.mean(0) - k * scores.std(0, correction=0)
