"""Worked answers to the exercises of notebook 05."""

import torch


# Choose before you exponentiate: `torch.where` picks 0 for the log-ratio where nothing counts, and e^0 = 1. A product
# with the mask would keep the nan. The gradient flows through the new log-probabilities only.
def my_token_ratio(logprobs, old_logprobs, mask):
    log_ratio = torch.where(mask > 0, logprobs - old_logprobs, 0)
    return log_ratio.exp()


# Flat means: moved the right way, and by more than clip_eps. Everywhere else the unclipped term is the smaller one (or
# nothing is clipped at all), and the derivative of ratio * A by the log-probability is ratio * A.
def my_clip_gradient(ratio, advantages, clip_eps):
    good_enough = (advantages > 0) & (ratio > 1 + clip_eps)
    bad_enough = (advantages < 0) & (ratio < 1 - clip_eps)
    return torch.where(good_enough | bad_enough, 0, ratio * advantages)


# The actions come from the old policy, so k3 for KL(old || new) has the ratio new / old. `above.cumsum` counts the
# epochs above the target up to and including this one; less the one itself, those before it. At 0 an epoch is run.
def my_epoch_kls(logprobs, old_logprobs, mask, target_kl):
    log_ratio = logprobs - old_logprobs  # [E, B, T]
    k3 = (log_ratio.exp() - 1 - log_ratio) * mask
    kls = k3.sum((1, 2)) / mask.sum()  # [E]
    above = (kls > target_kl).long()
    return torch.where(above.cumsum(0) - above == 0, kls, 0)


# One line moves up, out of the loop: the batch was drawn by the policy before the first step, and stays so. The buggy
# version compares the policy with itself: its ratio is 1, the clip never acts, and it is REINFORCE on stale data.
def my_several_steps(logits, actions, advantages, steps, lr, clip_eps):
    old_logprobs = logits.log_softmax(0)[actions].detach()
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        ratio = (logits.log_softmax(0)[actions] - old_logprobs).exp()
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages).mean()
        logits = logits + lr * torch.autograd.grad(surrogate, logits)[0]
    return logits.detach()
