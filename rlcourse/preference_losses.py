"""Learning a policy from comparisons, without a reward model: DPO and IPO."""

from torch import Tensor

from rlcourse.losses import bradley_terry_loss


def dpo_loss(
    preferred: Tensor,
    rejected: Tensor,
    ref_preferred: Tensor,
    ref_rejected: Tensor,
    kl_coef: float,
    probability: Tensor | None = None,
) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2023, eq. 7): Bradley-Terry with the policy as its own reward.

    preferred, rejected: [N] log p(response | prompt), summed over its actions; ref_*: the reference's -> scalar.
    kl_coef: the beta of J_beta. probability: [N], how likely people are to prefer the first, 1 if left out.

        margin = kl_coef * ((preferred - ref_preferred) - (rejected - ref_rejected))
        -mean( probability * log sigmoid(margin) + (1 - probability) * log sigmoid(-margin) )

    With every pair in it, and the probability sigmoid(reward - other reward), it is smallest at the policy of largest
    J_beta, `TokenMDP.optimal_policy`: there kl_coef * log(p / p_ref) is the reward up to a constant.
    """
    _check_coefficient(kl_coef=kl_coef)
    _check_pairs(preferred, rejected, ref_preferred, ref_rejected, probability)
    rewards = (kl_coef * (x - ref.detach()) for x, ref in ((preferred, ref_preferred), (rejected, ref_rejected)))
    return bradley_terry_loss(*rewards, probability)


def ipo_loss(
    preferred: Tensor,
    rejected: Tensor,
    ref_preferred: Tensor,
    ref_rejected: Tensor,
    tau: float,
    probability: Tensor | None = None,
) -> Tensor:
    """Identity preference optimization (Azar et al. 2024, eq. 17): the gap has a goal instead of no end.

    Arguments as for `dpo_loss`, with tau in the place of kl_coef -> scalar.

        gap = (preferred - ref_preferred) - (rejected - ref_rejected)
        mean( probability * (gap - 1 / (2 * tau))^2 + (1 - probability) * (gap + 1 / (2 * tau))^2 )

    With every pair of texts drawn from mu it is smallest at p(text) ~ p_ref(text) * exp(P(text beats mu) / tau).
    """
    _check_coefficient(tau=tau)
    _check_pairs(preferred, rejected, ref_preferred, ref_rejected, probability)
    gap, goal = (preferred - ref_preferred.detach()) - (rejected - ref_rejected.detach()), 1 / (2 * tau)
    if probability is None:
        return ((gap - goal) ** 2).mean()
    return (probability * (gap - goal) ** 2 + (1 - probability) * (gap + goal) ** 2).mean()


def _check_pairs(preferred: Tensor, rejected: Tensor, ref_preferred: Tensor, ref_rejected: Tensor, probability) -> None:
    given = dict(preferred=preferred, rejected=rejected, ref_preferred=ref_preferred, ref_rejected=ref_rejected)
    for name, x in (given if probability is None else given | dict(probability=probability)).items():
        if x.ndim != 1 or x.shape != preferred.shape:
            raise ValueError(f"{name} must be [N] as preferred {tuple(preferred.shape)} is, got {tuple(x.shape)}")


def _check_coefficient(**number: float) -> None:
    for name, value in number.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
