"""Likelihood training of a policy on given responses: the start that policy gradients then improve."""

import torch
from torch import Tensor

from rlcourse.masking import check_shapes, masked_mean


def supervised_update(
    policy, optimizer: torch.optim.Optimizer, inputs, actions: Tensor, mask: Tensor, max_grad_norm: float = 1.0
) -> dict[str, float]:
    """One step of maximum likelihood on given actions, such as those of `GPT2Policy.encode_responses`.

    actions: [B, T] long, mask: [B, T].    loss = -sum( mask * log pi(actions) ) / sum(mask)

    A mean over tokens: every token of the data weighs the same, a long answer more than a short one. For a policy
    gradient that would be a bias, since there the policy itself decides how long its responses are; here the lengths
    are given with the data and do not depend on the parameters, so it only fixes the unit, nats per token. (Across
    batches it is no longer exactly the mean over the data: a token of a short batch counts a little more.)

    Returns floats: loss (nats per token) and grad_norm (before gradients are scaled down to `max_grad_norm`).
    """
    check_shapes(mask, actions=actions)
    if not mask.any():
        raise ValueError("mask counts no action: there is nothing to learn from")
    logprobs = policy.evaluate(inputs, actions)[0]  # [B, T]
    loss = -masked_mean(logprobs, mask)
    optimizer.zero_grad()
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
    optimizer.step()
    return dict(loss=loss.item(), grad_norm=grad_norm.item())
