"""Worked answers to the exercises of notebook 11."""

import torch


# The best next action by the table, counted gamma times, and only if the text goes on. Multiplying with 1 - dones is
# safe here because all numbers are finite; the package chooses with `where`, which also stops inf and nan.
def my_td_targets(rewards, next_q, dones, gamma):
    return rewards + gamma * (1 - dones) * next_q.max(-1).values


# Every action gets epsilon / V. What is left, 1 - epsilon, goes to the best; comparing with the maximum marks all that
# are equally good, and dividing by their number lets them share.
def my_epsilon_greedy(q, epsilon):
    best = (q == q.max(-1, keepdim=True).values).float()
    return (1 - epsilon) * best / best.sum(-1, keepdim=True) + epsilon / q.shape[-1]


# The noise of `first` decides which action wins; the noise of `second` is independent of it, so at the winner its mean
# is that action's true worth. That is never more than the best true worth: the bias upwards is gone, and a small one
# downwards may come instead, because the winner is not always the best action.
def my_double_estimate(first, second):
    return second.gather(-1, first.argmax(-1, keepdim=True))[..., 0]


# The state after token t is the one in which token t + 1 is chosen: its value, times its mask, moved one place to the
# left. Where the text has ended the mask is 0, so a last token has no future; a 0 fills the last place of the row.
def my_text_targets(target_q, rewards, mask, gamma):
    value = target_q.max(-1).values * mask  # [B, T]
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    return (rewards + gamma * following) * mask
