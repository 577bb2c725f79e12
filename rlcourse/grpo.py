"""GRPO: several clipped steps on groups of responses, with the KL in the loss and without a critic."""

from collections import defaultdict

import torch
from torch import Tensor

from rlcourse.losses import clip_fraction, grpo_loss
from rlcourse.ppo import PPOConfig
from rlcourse.rollout import Rollout


def grpo_update(
    policy, optimizer: torch.optim.Optimizer, rollout: Rollout, advantages: Tensor, cfg: PPOConfig, kl_coef: float
) -> dict[str, float]:
    """Train `policy` on one rollout with GRPO (Shao et al. 2024, Algorithm 1).

    advantages: [B], from `group_advantages`; they are used as they are. rollout.ref_logprobs holds the reference's.
    Of cfg it reads epochs, minibatches, clip_eps and max_grad_norm. Each step minimises

        grpo_loss(logprobs, old_logprobs, advantages, mask, clip_eps, ref_logprobs, kl_coef)

    Rows are shuffled with torch's global generator. Returns floats, means over the steps: loss, clip_frac, grad_norm.
    """
    if advantages.shape != rollout.mask.shape[:1]:
        expected = tuple(rollout.mask.shape[:1])
        raise ValueError(f"advantages must be [B] = {expected}, one a response, got {tuple(advantages.shape)}")
    if rollout.ref_logprobs is None and kl_coef:
        raise ValueError("rollout has no ref_logprobs; make it with dataclasses.replace(rollout, ref_logprobs=...)")
    if cfg.minibatches > len(rollout):
        raise ValueError(f"minibatches is {cfg.minibatches} but the rollout has only {len(rollout)} rows")
    history = defaultdict(list)
    for _ in range(cfg.epochs):
        for rows in torch.randperm(len(rollout)).to(rollout.mask.device).tensor_split(cfg.minibatches):
            batch = rollout[rows]
            logprobs, _ = policy.evaluate(batch.inputs, batch.actions)
            loss = grpo_loss(
                logprobs, batch.old_logprobs, advantages[rows], batch.mask, cfg.clip_eps, batch.ref_logprobs, kl_coef
            )
            optimizer.zero_grad()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.max_grad_norm)
            optimizer.step()
            clipped = clip_fraction(logprobs.detach(), batch.old_logprobs, batch.mask, cfg.clip_eps)
            for name, number in dict(loss=loss, clip_frac=clipped, grad_norm=grad_norm).items():
                history[name].append(number.detach())
    return {name: torch.stack(numbers).mean().item() for name, numbers in history.items()}
