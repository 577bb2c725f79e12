"""Proximal policy optimization: several gradient steps on one batch of sampled actions."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlcourse.losses import clip_fraction, clipped_surrogate_loss, kl_estimate, value_loss
from rlcourse.masking import check_shapes, masked_mean, masked_whiten
from rlcourse.rollout import Prompts, Rollout


@dataclass(frozen=True)
class PPOConfig:
    """Settings of `ppo_update`.

    epochs: passes over the rollout. minibatches: gradient steps per pass. clip_eps, value_clip_eps: how far the ratio
    and the values may move (None leaves values unclipped). vf_coef, ent_coef: weights of value loss and entropy.
    max_grad_norm: gradients are scaled down to this norm. target_kl: stop after an epoch whose mean k3 between the new
    and the sampling policy exceeds this many nats per action (None never stops).
    """

    epochs: int = 2
    minibatches: int = 4
    clip_eps: float = 0.2
    value_clip_eps: float | None = None
    vf_coef: float = 0.5
    ent_coef: float = 0.0
    max_grad_norm: float = 1.0
    target_kl: float | None = None

    def __post_init__(self):
        for name in ("epochs", "minibatches", "clip_eps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("value_clip_eps", "target_kl"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive or None, got {getattr(self, name)}")


def ppo_update(
    policy,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    cfg: PPOConfig,
    policy_loss_fn=clipped_surrogate_loss,
) -> dict[str, float]:
    """Train `policy` on one rollout with PPO (Schulman et al. 2017, eq. 9); advantages are whitened over all of it.

    advantages, returns: [B, T], e.g. from `gae`. Each step minimises
        policy_loss_fn(logprobs, old_logprobs, advantages, mask, clip_eps) + vf_coef * value_loss - ent_coef * entropy.

    Rows are shuffled with torch's global generator. Returns floats, means over the steps taken unless it says so:
    policy_loss, value_loss, entropy (nats per action), clip_frac, grad_norm (before it is clipped), approx_kl (k3
    against the sampling policy, nats per action, last epoch only), first_ratio (before the first step: the ratio
    farthest from 1, which must be 1), explained_variance (1 - var(returns - values) / var(returns), with the values at
    sampling time; nan when the returns are all alike).
    """
    check_shapes(rollout.mask, advantages=advantages, returns=returns)
    if cfg.minibatches > len(rollout):
        raise ValueError(f"minibatches is {cfg.minibatches} but the rollout has only {len(rollout)} rows")
    advantages = masked_whiten(advantages, rollout.mask)
    lengths = rollout.mask.sum(1).long().clamp(min=1).cpu()  # once, and not in every step: a host read
    history = defaultdict(list)
    for _ in range(cfg.epochs):
        kls = []
        for rows in torch.randperm(len(rollout)).tensor_split(cfg.minibatches):
            batch, mask = rollout[rows], rollout.mask[rows]
            logprobs, values, entropies = _evaluate(policy, batch, lengths[rows])
            policy_loss = policy_loss_fn(logprobs, batch.old_logprobs, advantages[rows], mask, cfg.clip_eps)
            critic_loss = value_loss(values, returns[rows], mask, batch.values, cfg.value_clip_eps)
            entropy = masked_mean(entropies, mask)
            loss = policy_loss + cfg.vf_coef * critic_loss
            if cfg.ent_coef:  # a weight of 0 would still pay for the way back through all V logits
                loss = loss - cfg.ent_coef * entropy
            optimizer.zero_grad()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.max_grad_norm)
            optimizer.step()
            step = dict(policy_loss=policy_loss, value_loss=critic_loss, entropy=entropy, grad_norm=grad_norm)
            for name, number in (step | _ratio_statistics(logprobs, batch, cfg.clip_eps)).items():
                history[name].append(number.detach())
            kls.append(history["approx_kl"][-1])
        epoch_kl = torch.stack(kls).mean()
        if cfg.target_kl is not None and epoch_kl > cfg.target_kl:  # the one host read of an epoch
            break
    stats = {name: torch.stack(numbers).mean() for name, numbers in history.items()}
    stats |= dict(approx_kl=epoch_kl, first_ratio=history["first_ratio"][0])
    stats["explained_variance"] = _explained_variance(rollout.values, returns, rollout.mask)
    return dict(zip(stats, torch.stack([x.float() for x in stats.values()]).tolist()))


def _evaluate(policy, batch: Rollout, lengths: Tensor) -> tuple[Tensor, ...]:
    """`policy.evaluate` with entropies; of texts, without computing what lies behind their ends (0 there).

    The shorter and the longer half are evaluated apart, each as wide as its longest, where that saves a fifth.
    """
    if not isinstance(batch.inputs, Prompts):  # other inputs may go along with the actions
        return policy.evaluate(batch.inputs, batch.actions, with_entropy=True)
    order, T = lengths.argsort(), batch.mask.shape[1]
    parts = [half for half in order.tensor_split(2) if len(half)]
    if sum(len(rows) * lengths[rows[-1]] for rows in parts) > 0.8 * len(order) * lengths[order[-1]]:
        parts = [order]
    found = []
    for rows in parts:
        width = int(lengths[rows[-1]])
        numbers = policy.evaluate(batch.inputs[rows], batch.actions[rows, :width], with_entropy=True)
        found.append([pad(x, (0, T - width)) for x in numbers])
    back = order.argsort().to(batch.mask.device)
    return tuple(torch.cat(x)[back] for x in zip(*found))


@torch.no_grad()
def _ratio_statistics(logprobs: Tensor, batch: Rollout, clip_eps: float) -> dict[str, Tensor]:
    log_ratio = torch.where(batch.mask > 0, logprobs - batch.old_logprobs, 0)
    return dict(
        approx_kl=masked_mean(kl_estimate(batch.old_logprobs, logprobs, batch.mask, kind="k3"), batch.mask),
        clip_frac=clip_fraction(logprobs, batch.old_logprobs, batch.mask, clip_eps),
        first_ratio=log_ratio.flatten()[log_ratio.abs().argmax()].exp(),
    )


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    total = variance(returns)
    return torch.where(total > 1e-8, 1 - variance(returns - values) / total, torch.nan)
