"""Losses, KL estimators and entropy. A loss is minimised and is a scalar; everything is in nats."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlcourse.masking import check_shapes, masked_mean


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE (Williams 1992): its gradient is minus the policy-gradient theorem's estimate of grad J.

    logprobs, advantages, mask: [B, T] -> scalar.    -mean_rows( sum_t mask * logprobs * advantages )

    A sum over a row's actions and a mean over rows, as the theorem has it: dividing by the number of actions instead
    would weigh an action by how long the other responses are. Advantages carry no gradient.
    """
    check_shapes(mask, logprobs=logprobs, advantages=advantages)
    # both factors are zeroed where masked, so that a nan in either reaches neither the loss nor the gradient
    logprobs, advantages = (torch.where(mask > 0, x, 0) for x in (logprobs, advantages.detach()))
    return -(logprobs * advantages).sum() / len(mask)


def clipped_surrogate_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_eps: float = 0.2
) -> Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), negated so that it is minimised.

    logprobs, old_logprobs, advantages, mask: [B, T] -> scalar.

        ratio = exp(logprobs - old_logprobs)
        -mean( min( ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps) * A ) )

    The mean is over all counted actions of the batch (as in most PPO code), not over rows: with responses of different
    lengths its gradient at ratio 1 is that of `reinforce_loss` times rows / counted actions, a factor that varies
    from batch to batch. The `min` makes the bound pessimistic: a change that helps is paid for up to clip_eps, one
    that hurts is charged in full.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    _check_clip_eps(clip_eps)
    ratio = _log_ratio(logprobs, old_logprobs.detach(), mask).exp()
    advantages = advantages.detach()
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    return -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_eps: float = 0.2,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_kind: str = "k3",
) -> Tensor:
    """GRPO (Shao et al. 2024, eq. 3 and 4), negated: the clipped surrogate, and the KL to a reference as a loss.

    logprobs, old_logprobs, ref_logprobs, mask: [B, T]; advantages: [B], one a response, or [B, T] -> scalar.

        ratio = exp(logprobs - old_logprobs)
        -mean_rows( mean_t( min( ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps) * A ) - kl_coef * k3 ) )

    A mean over each response's actions, then one over responses: an action weighs 1 / its response's length. A row in
    which nothing counts adds 0. At ratio 1 the first term has REINFORCE's gradient, with that weight; the gradient of
    k3 is that of the *forward* KL(ref || pi) in each state on the way. kl_kind: another of `kl_estimate`'s.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    _check_clip_eps(clip_eps)
    advantages = _per_action(advantages, mask).detach()
    ratio = _log_ratio(logprobs, old_logprobs.detach(), mask).exp()
    gain = _clipped_gain(ratio, advantages, clip_eps)
    if kl_coef:
        if ref_logprobs is None:
            raise ValueError(f"kl_coef is {kl_coef}, which needs ref_logprobs")
        check_shapes(mask, ref_logprobs=ref_logprobs)
        gain = gain - kl_coef * kl_estimate(logprobs, ref_logprobs.detach(), mask, kl_kind)
    return -(torch.where(mask > 0, gain, 0).sum(1) / mask.sum(1).clamp(min=1)).mean()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, normalise: bool = True) -> Tensor:
    """How much likelier a whole response has become.

    logprobs, old_logprobs, mask: [B, T] -> [B]; 1 where nothing counts.

        exp( mean_t(logprobs - old_logprobs) )    with `normalise`: GSPO (Zheng et al. 2025, eq. 7)
        exp( sum_t(logprobs - old_logprobs) )     without: p(response) / p_old(response), the importance weight
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    total = _log_ratio(logprobs, old_logprobs.detach(), mask).sum(1)
    return (total / mask.sum(1).clamp(min=1) if normalise else total).exp()


def sequence_surrogate_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_eps: float = 0.2,
    normalise: bool = True,
) -> Tensor:
    """The clipped surrogate with one ratio a response (GSPO; Zheng et al. 2025, eq. 5), negated.

    logprobs, old_logprobs, mask: [B, T]; advantages: [B] -> scalar.

        ratio = sequence_ratio(logprobs, old_logprobs, mask, normalise)                   # [B]
        -mean_rows( min( ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps) * A ) )

    All actions of a response are kept or clipped together. Without `normalise` and clip its expected gradient is that
    of the expected advantage itself, however far the policy has moved; the price is variance.
    """
    if advantages.shape != mask.shape[:1]:
        raise ValueError(f"advantages must be [B] for mask {tuple(mask.shape)}, got {tuple(advantages.shape)}")
    _check_clip_eps(clip_eps)
    ratio = sequence_ratio(logprobs, old_logprobs, mask, normalise)
    return -_clipped_gain(ratio, advantages.detach(), clip_eps).mean()


def value_loss(
    values: Tensor, returns: Tensor, mask: Tensor, old_values: Tensor | None = None, clip_eps: float | None = None
) -> Tensor:
    """Half the squared error of the critic, averaged over counted actions.

    values, returns, mask, old_values: [B, T] -> scalar.    mean( (values - returns)^2 ) / 2

    With `clip_eps`, values may move at most that far from `old_values`, and the larger of the clipped and the
    unclipped error counts (the variant of the original PPO code; Huang et al. 2022 found no benefit).
    """
    check_shapes(mask, values=values, returns=returns)
    returns = returns.detach()
    error = torch.where(mask > 0, values - returns, 0) ** 2
    if clip_eps is not None:
        if old_values is None:
            raise ValueError("clip_eps needs old_values, the values at sampling time")
        check_shapes(mask, old_values=old_values)
        _check_clip_eps(clip_eps)
        old_values = old_values.detach()
        clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
        error = torch.maximum(error, torch.where(mask > 0, clipped - returns, 0) ** 2)
    return masked_mean(error, mask) / 2


def kl_estimate(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor, kind: str = "k1") -> Tensor:
    """Estimates of KL(pi || other) from actions drawn from pi (Schulman 2020, "Approximating KL Divergence").

    logprobs, other_logprobs, mask: [B, T] -> [B, T], 0 where masked. With d = logprobs - other_logprobs:

        k1 = d                    unbiased, often negative, large variance
        k2 = d^2 / 2              biased, never negative
        k3 = exp(-d) - 1 + d      unbiased, never negative

    For monitoring. As a loss only k2 has, action by action, the gradient of KL(pi || other); k1 has 0 on average.
    """
    check_shapes(mask, logprobs=logprobs, other_logprobs=other_logprobs)
    difference = _log_ratio(logprobs, other_logprobs, mask)
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference**2 / 2
    if kind == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f'kind must be "k1", "k2" or "k3", got {kind!r}')


def exact_kl(logits: Tensor, other_logits: Tensor, mask: Tensor) -> Tensor:
    """KL(pi || other) at each action, summed over the whole vocabulary: what the estimators estimate.

    logits, other_logits: [B, T, V], mask: [B, T] -> [B, T], 0 where masked.    sum_v pi(v) * (log pi(v) - log other(v))
    """
    _check_logits(mask, logits=logits, other_logits=other_logits)
    logp, logq = _log_softmax(logits), _log_softmax(other_logits)
    possible = logp > -torch.inf  # forbidden tokens add 0, not 0 * inf
    return torch.where(mask > 0, (logp.exp() * torch.where(possible, logp - logq, 0)).sum(-1), 0)


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Entropy of the policy at each action.

    logits: [B, T, V], mask: [B, T] -> [B, T], 0 where masked.    -sum_v pi(v) * log pi(v)
    """
    _check_logits(mask, logits=logits)
    logp = _log_softmax(logits)
    return torch.where(mask > 0, -(logp.exp() * torch.where(logp > -torch.inf, logp, 0)).sum(-1), 0)


def clip_fraction(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, clip_eps: float) -> Tensor:
    """Share of the counted actions whose ratio lies outside [1 - clip_eps, 1 + clip_eps].

    logprobs, old_logprobs, mask: [B, T] -> scalar in [0, 1].
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    _check_clip_eps(clip_eps)
    ratio = _log_ratio(logprobs, old_logprobs, mask).exp()
    return masked_mean(((ratio - 1).abs() > clip_eps).float(), mask)


def bradley_terry_loss(preferred: Tensor, rejected: Tensor, probability: Tensor | None = None) -> Tensor:
    """Minus the mean log-likelihood of comparisons under P(a beats b) = sigmoid(score_a - score_b).

    preferred, rejected: [N] scores -> scalar. probability: [N], how likely people are to prefer the first (1 if left
    out): a soft label, so that where raters disagree the model is asked to be unsure too. Bradley and Terry (1952).
    """
    check = {"preferred": preferred, "rejected": rejected} | (
        {} if probability is None else {"probability": probability}
    )
    for name, x in check.items():
        if x.ndim != 1 or x.shape != preferred.shape:
            raise ValueError(f"{name} must be [N] as preferred {tuple(preferred.shape)} is, got {tuple(x.shape)}")
    margin = preferred - rejected
    if probability is None:
        return -logsigmoid(margin).mean()
    return -(probability * logsigmoid(margin) + (1 - probability) * logsigmoid(-margin)).mean()


def _clipped_gain(ratio: Tensor, advantages: Tensor, clip_eps: float) -> Tensor:
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)


def _per_action(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B] or [B, T] -> [B, T], 0 where masked."""
    if advantages.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(f"advantages must be [B] or [B, T] for mask {tuple(mask.shape)}, "
                         f"got {tuple(advantages.shape)}")  # fmt: skip
    return torch.where(mask > 0, advantages[:, None] if advantages.ndim == 1 else advantages, 0)


def _log_ratio(logprobs: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """logprobs - other, and exactly 0 where masked: an overflow there would give a nan gradient even behind `where`."""
    return torch.where(mask > 0, logprobs - other, 0)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least, whatever the logits come in."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _check_clip_eps(clip_eps: float) -> None:
    if not clip_eps > 0:
        raise ValueError(f"clip_eps must be positive, got {clip_eps}")


def _check_logits(mask: Tensor, **logits: Tensor) -> None:
    check_shapes(mask)
    first = next(iter(logits.values()))
    for name, tensor in logits.items():
        if tensor.ndim != 3 or tensor.shape[:2] != mask.shape or tensor.shape != first.shape:
            raise ValueError(f"{name} must be [B, T, V] for mask {tuple(mask.shape)}, got {tuple(tensor.shape)}")
