"""Worked answers to the exercises of notebook 04."""

import torch


# Walk from the right: what comes from t on is the own reward and gamma times what comes from t + 1 on. Multiplying by
# the mask at every step makes everything after the end worth nothing, before it can leak back.
def my_discounted_reward_to_go(rewards, mask, gamma):
    result, following = torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        following = (rewards[:, t] + gamma * following) * mask[:, t]
        result[:, t] = following
    return result


# Set the potential to 0 after the end *first*; then the last action of every row sees a 0 ahead by itself. In a row
# without padding nothing stands to the right, so a column of zeros is appended.
def my_potential_shaping(rewards, potentials, mask, gamma):
    potentials = potentials * mask
    following = torch.cat([potentials[:, 1:], torch.zeros_like(potentials[:, :1])], dim=1)
    return (rewards + gamma * following - potentials) * mask


# Only the right guess is paid, and it is made with probability pi(y). So the expected gradient is pi(y) times that of
# log pi(y), which is "one at y, minus the probabilities". Each row sums to zero.
def my_next_token_gradient(logits, targets):
    pi = logits.softmax(-1)
    right = torch.nn.functional.one_hot(targets, logits.shape[1]).to(pi.dtype)
    chance = (pi * right).sum(-1, keepdim=True)
    return chance * (right - pi)


# The buggy line subtracts the score before action t - 1 from the score before action t: that is what action t - 1
# added. What action t added is the score *after* it minus the score before it, and after the last one stands the final
# score. Now the rewards of a row add up to the score. A right sum is the first test, not the last one: paid one token
# late, with the rest on top at the end, they add up too.
def my_paid_as_it_grows(before, scores):
    after = torch.cat([before[:, 1:], scores[:, None]], dim=1)
    return after - before
