"""Worked answers to the exercises of notebook 00."""

import torch


# An expectation is a mean weighed by probability. The softmax turns each row of logits into probabilities, over the
# actions, the last dimension; then multiply, number by number, and add up each row.
def my_expected_reward(logits, rewards):
    return (logits.softmax(-1) * rewards).sum(-1)  # [B]


# Zero what does not count, add up, divide by the number of tokens that count. A plain `mean` would divide by the
# padding too; a mean of row means would give a token of a short text more weight.
def my_negative_log_likelihood(logprobs, mask):
    return -(logprobs * mask).sum() / mask.sum()


# The buggy lines gather first. What is left has one number in its last dimension, and a softmax over one number is 1:
# its logarithm is 0, whatever the logits are. Normalise over all V tokens first, then pick.
def my_chosen_logprobs(logits, actions):
    log_pi = logits.log_softmax(-1)  # [B, T, V]
    return log_pi.gather(-1, actions[..., None])[..., 0]  # [B, T]


# Each token but a text's last is a state, each but its first is what followed: two slices of the same tensor. Count the
# pairs, then divide each row by its sum: P(a | s) = count(s, a) / count(s, anything).
def my_bigram_policy(texts, vocab_size):
    counts = torch.zeros(vocab_size, vocab_size)
    for s, a in zip(texts[:, :-1].flatten().tolist(), texts[:, 1:].flatten().tolist()):
        counts[s, a] += 1
    return counts / counts.sum(1, keepdim=True)
