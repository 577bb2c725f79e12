"""Worked answers to the exercises of notebook 02."""

import torch


# Equation (2), read from the inside: each log-probability times its own advantage, zero where nothing was chosen, a sum
# over the actions of a text, a mean over texts, and a minus because an optimizer goes downhill.
def my_reinforce_loss(logprobs, advantages, mask):
    return -(logprobs * advantages * mask).sum(1).mean()


# A loss that does not ask for a gradient cannot be differentiated at all, so its row is 0. Otherwise
# `torch.autograd.grad` gives None for what it cannot reach (with `allow_unused=True`), and it touches no `.grad`, so
# nothing needs clearing. A gradient counts when any entry differs from 0; a sum would miss +1 and −1.
def my_gradient_reaches(losses, parameters):
    table = torch.zeros(len(losses), len(parameters))
    for i, loss in enumerate(losses):
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for j, gradient in enumerate(gradients):
                table[i, j] = float(gradient is not None and bool((gradient != 0).any()))
    return table


# Three mistakes. `max` pays the likeliest token, whatever was sampled: `gather` picks the chosen one. Nothing is
# masked, so what stands after the end is paid. And the sign is missing: the optimizer would make good texts rare.
def my_broken_loss(logits, actions, scores, mask):
    logprobs = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]  # [B, T]
    return -(logprobs * scores[:, None] * mask).sum(1).mean()
