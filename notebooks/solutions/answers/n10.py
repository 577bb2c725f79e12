"""Worked answers to the exercises of notebook 10."""

import torch


# Hits are texts where label and prediction are both this class. F1 = 2 TP / (2 TP + FP + FN), and TP + FP is how often
# the class was said, TP + FN how often it is true. Clamped at 1, the denominator of a class that occurs nowhere gives
# 0 / 1 = 0; any other denominator is at least 1 already.
def my_class_f1(labels, predicted, num_labels):
    classes = torch.arange(num_labels)[:, None]  # [A, 1] against [N]
    true, said = labels == classes, predicted == classes  # [A, N]
    hits = (true & said).sum(1)
    return 2 * hits / (true.sum(1) + said.sum(1)).clamp(min=1)


# The expected cost of saying a is sum_y p(y) costs[y, a], a matrix product. The cheapest is its argmin.
def my_cheapest_label(probabilities, costs):
    return (probabilities @ costs).argmin(1)


# The weight says how much more often the new policy would have done what the log shows. Dividing by the sum of the
# weights makes it a weighted mean of rewards, so it always lies between the smallest and the largest of them.
def my_logged_value(logits, actions, rewards, propensities):
    pi = logits.softmax(1).gather(1, actions[:, None])[:, 0]
    weights = pi / propensities
    return (weights * rewards).sum() / weights.sum()


# The buggy line takes the log-probability of the *label*. Where the choice was wrong, the advantage is negative, and
# the right label is pushed down. What is to become likelier or rarer is the action that was paid.
def my_paid_choice(logits, actions, labels):
    rewards = (actions == labels).float()
    baseline = (rewards.sum() - rewards) / (len(rewards) - 1)
    logprobs = logits.log_softmax(1).gather(1, actions[:, None])[:, 0]
    return -(logprobs * (rewards - baseline)).mean()
