"""REINFORCE: one gradient step on one batch of sampled actions."""

import torch
from torch import Tensor

from rlcourse.losses import reinforce_loss, value_loss
from rlcourse.masking import check_shapes, masked_mean
from rlcourse.rollout import Rollout


def reinforce_update(
    policy,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor | None = None,
    vf_coef: float = 0.5,
    ent_coef: float = 0.0,
    max_grad_norm: float | None = None,
) -> dict[str, float]:
    """Train `policy` with one step of REINFORCE (Williams 1992) on a rollout it has just sampled.

    advantages: [B, T], returns minus a baseline, used as they are. returns: [B, T], targets for the policy's values, or
    None to leave them alone.

        reinforce_loss(logprobs, advantages, mask) + vf_coef * value_loss - ent_coef * entropy

    One step only: after it the rollout comes from another policy. Returns floats: policy_loss, value_loss, entropy
    (nats per action), grad_norm (before max_grad_norm, None for no limit, scales it down).
    """
    check_shapes(rollout.mask, advantages=advantages, **({} if returns is None else dict(returns=returns)))
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be positive or None, got {max_grad_norm}")
    logprobs, values, entropies = policy.evaluate(rollout.inputs, rollout.actions, with_entropy=True)
    policy_loss, entropy = reinforce_loss(logprobs, advantages, rollout.mask), masked_mean(entropies, rollout.mask)
    critic_loss = torch.zeros_like(policy_loss) if returns is None else value_loss(values, returns, rollout.mask)
    loss = policy_loss + vf_coef * critic_loss - ent_coef * entropy
    optimizer.zero_grad()
    loss.backward()
    limit = float("inf") if max_grad_norm is None else max_grad_norm
    grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), limit)
    optimizer.step()
    stats = dict(policy_loss=policy_loss, value_loss=critic_loss, entropy=entropy, grad_norm=grad_norm)
    return dict(zip(stats, torch.stack([x.detach().float() for x in stats.values()]).tolist()))
