"""From rewards to returns, advantages and the KL-shaped rewards of RLHF."""

import torch
from torch import Tensor

from rlcourse.masking import check_shapes, last_counted


def discounted_returns(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Reward-to-go (Sutton and Barto 2018, eq. 3.8): G_t = r_t + gamma * G_{t+1}.

    rewards, mask: [B, T] -> [B, T], 0 where masked.

    >>> discounted_returns(torch.tensor([[1., 0., 2.]]), torch.ones(1, 3), gamma=0.5)
    tensor([[1.5000, 1.0000, 2.0000]])
    """
    check_shapes(mask, rewards=rewards)
    _check_fraction(gamma=gamma)
    return _sums_ahead(torch.where(mask > 0, rewards, 0), gamma * mask)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
    dones: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16).

    rewards, values, mask: [B, T] -> advantages, returns: [B, T], both 0 where masked; neither carries a gradient.

        delta_t = r_t + gamma * V_{t+1} - V_t            A_t = delta_t + gamma * lam * A_{t+1}
        returns = A + V                                  (the target of the value head)

    After a row's last counted action V is 0: the response is over. For environments that are cut off or restart inside
    a row, `last_values` [B] is V after the last counted action, and `dones` [B, T] is 1 where an action ended an
    episode: there neither V_{t+1} nor A_{t+1} is carried back.
    lam=1 gives returns minus values (no bias from V), lam=0 the one-step error delta (least variance).
    """
    check_shapes(mask, rewards=rewards, values=values)
    _check_fraction(gamma=gamma, lam=lam)
    if last_values is not None and last_values.shape != mask.shape[:1]:
        raise ValueError(f"last_values must be [B] = {tuple(mask.shape[:1])}, got {tuple(last_values.shape)}")
    with torch.no_grad():
        rewards, values = (torch.where(mask > 0, x, 0) for x in (rewards, values))
        next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)  # 0 after the end
        if last_values is not None:
            next_values = next_values + last_values[:, None] * last_counted(mask)
        goes_on = mask
        if dones is not None:
            check_shapes(mask, dones=dones)
            goes_on = mask * (1 - dones.to(mask.dtype))
        deltas = (rewards + gamma * next_values * goes_on - values) * mask
        advantages = _sums_ahead(deltas, gamma * lam * goes_on)
        return advantages, (advantages + values) * mask


def kl_shaped_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Per-action rewards of RLHF (Ziegler et al. 2019, eq. 2): the score, less the price of leaving the reference.

    logprobs, ref_logprobs, mask: [B, T]; scores: [B] or [B, T] -> [B, T], 0 where masked, without gradient.

        r_t = score_t - kl_coef * (logprobs_t - ref_logprobs_t)

    Scores of shape [B] judge whole responses and land on the last counted action; scores [B, T] are added per action.
    A row in which nothing counts has no action to carry its score, and gets zeros. Scores must be finite (checked on
    CPU tensors only); they are moved to the mask's device.
    """
    check_shapes(mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
    if scores.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(f"scores must be [B] or [B, T] for mask {tuple(mask.shape)}, got {tuple(scores.shape)}")
    if scores.device.type == "cpu" and not scores.isfinite().all():
        row = int((~scores.isfinite()).nonzero()[0, 0])
        raise ValueError(f"scores must be finite, got {scores[row].tolist()} in row {row}")
    with torch.no_grad():
        scores = scores.to(mask.device)
        if scores.ndim == 1:
            scores = scores[:, None] * last_counted(mask)
        return torch.where(mask > 0, scores - kl_coef * (logprobs - ref_logprobs), 0)


def potential_shaped_rewards(rewards: Tensor, potentials: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Potential-based shaping (Ng, Harada and Russell 1999): rewards that hint, and leave every optimal policy optimal.

    rewards, potentials, mask: [B, T] -> [B, T], 0 where masked.    r_t + gamma * Phi(s_{t+1}) - Phi(s_t)

    potentials: Phi(s_t), a function of the state in which action t is chosen; after the last counted action Phi is 0.
    Each return G_t changes by exactly -Phi(s_t), which no action at t can influence.
    """
    check_shapes(mask, rewards=rewards, potentials=potentials)
    _check_fraction(gamma=gamma)
    potentials = torch.where(mask > 0, potentials, 0)
    following = torch.cat([potentials[:, 1:], torch.zeros_like(potentials[:, :1])], dim=1)
    return torch.where(mask > 0, rewards + gamma * following - potentials, 0)


class AdaptiveKL:
    """Raises the price of KL when there is too much, lowers it when there is little (Ziegler et al. 2019, 2.2).

        kl_coef <- kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_samples / horizon)

    target: nats per response. horizon: samples after which a KL that is 20 % off has changed kl_coef by 20 %.
    """

    def __init__(self, kl_coef: float, target: float, horizon: float):
        for name, number in dict(kl_coef=kl_coef, target=target, horizon=horizon).items():
            if not number > 0:
                raise ValueError(f"{name} must be positive, got {number}")
        self.kl_coef, self.target, self.horizon = kl_coef, target, horizon

    def update(self, kl: float, num_samples: int) -> float:
        """Take the KL measured on `num_samples` responses (nats per response); returns the new kl_coef."""
        if num_samples > self.horizon:
            raise ValueError(f"num_samples must be at most horizon {self.horizon}, got {num_samples}")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * num_samples / self.horizon
        return self.kl_coef


def _sums_ahead(x: Tensor, carry: Tensor) -> Tensor:
    """y_t = x_t + carry_t * y_{t+1} by doubling: log2(T) element-wise steps instead of a Python loop over T.

    After a step, y_t sums `reach` terms and carry_t is the product of the `reach` carries between t and t + reach.
    """
    y, reach = x + torch.zeros_like(carry), 1
    while reach < x.shape[1]:
        y[:, :-reach] = y[:, :-reach] + carry[:, :-reach] * y[:, reach:]
        carry = torch.cat([carry[:, :-reach] * carry[:, reach:], torch.zeros_like(carry[:, :reach])], dim=1)
        reach *= 2
    return y


def _check_fraction(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {number}")
