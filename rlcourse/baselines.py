"""What may be subtracted from a return, what is best subtracted, and how noisy a gradient estimate is."""

import torch
from torch import Tensor

from rlcourse.masking import check_shapes


def batch_mean_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    """The mean return at each step over the rows that are still going on, one's own row included.

    returns, mask: [B, T] -> [B, T], 0 where masked.    b_t = sum_j mask_jt * returns_jt / sum_j mask_jt

    One's own return is inside, so the baseline depends on the action: with B rows of equal length the expected
    gradient shrinks to (B - 1) / B of the true one; of unequal length, step t's part to 1 - (1 - (1 - q)^B) / (B * q),
    where q is the probability that a row is still going on. `leave_one_out_baseline` has no such bias.
    """
    check_shapes(mask, returns=returns)
    sums, counts = torch.where(mask > 0, returns, 0).sum(0), mask.sum(0)
    return sums / counts.clamp(min=1) * mask


def leave_one_out_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    """The mean return at each step over the *other* rows still going on (Kool et al. 2019; RLOO); 0 when there is none.

    returns, mask: [B, T] -> [B, T], 0 where masked.    b_it = sum_{j != i} mask_jt * returns_jt / sum_{j != i} mask_jt
    """
    check_shapes(mask, returns=returns)
    own = torch.where(mask > 0, returns, 0)
    return (own.sum(0) - own) / (mask.sum(0) - 1).clamp(min=1) * mask


def group_advantages(scores: Tensor, group_size: int, kind: str = "leave_one_out") -> Tensor:
    """Each response's score against the others of its own prompt: no critic is needed.

    scores: [B], B = prompts * group_size, the responses to one prompt next to each other -> [B].

        mean            score - mean(group)                       Dr. GRPO (Liu et al. 2025)
        leave_one_out   score - mean(others of the group)         RLOO (Kool et al. 2019; Ahmadian et al. 2024)
        std             (score - mean(group)) / (std(group) + 1e-4)       GRPO (Shao et al. 2024)

    The expected gradient is that of the expected score with leave_one_out, and (G - 1) / G of it with mean. With std,
    the sample standard deviation (over G - 1), it is another one, see notebook 12.
    A group of equal scores gets 0 in every kind.
    """
    if scores.ndim != 1:
        raise ValueError(f"scores must be [B], got {tuple(scores.shape)}")
    if not isinstance(group_size, int) or group_size < 2 or len(scores) % group_size:
        raise ValueError(f"group_size must be a whole number of at least 2 that divides the {len(scores)} scores, "
                         f"got {group_size!r}")  # fmt: skip
    groups = scores.reshape(-1, group_size)  # [prompts, G]
    centred = groups - groups.mean(1, keepdim=True)
    if kind == "mean":
        return centred.flatten()
    if kind == "leave_one_out":  # score - (sum - score) / (G - 1) = (score - mean) * G / (G - 1)
        return (centred * (group_size / (group_size - 1))).flatten()
    if kind == "std":
        return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    raise ValueError(f'kind must be "mean", "leave_one_out" or "std", got {kind!r}')


def optimal_baseline(scores: Tensor, returns: Tensor, features: Tensor, weights: Tensor) -> Tensor:
    """The minimum-variance baseline among the linear combinations of given features, by least squares.

    scores: [N, T, D], grad log pi(a_t|s_t), 0 where masked. returns: [N, T]. features: [N, T, K], functions of
    the state, not of the action. weights: [N], the probabilities of the rows, or 1/N for samples. -> coefficients [K].

        minimise over c:  E | sum_t score_t * (return_t - features_t . c) |^2

    A baseline leaves the mean of the estimate alone, so the smallest second moment is the smallest variance. The
    textbook formula E[|score|^2 return] / E[|score|^2] is this for one constant feature and one action.
    """
    if features.shape[:2] != returns.shape or scores.shape[:2] != returns.shape or weights.shape != returns.shape[:1]:
        shapes = [tuple(x.shape) for x in (scores, returns, features, weights)]
        raise ValueError(f"expected scores [N, T, D], returns [N, T], features [N, T, K], weights [N], got {shapes}")
    plain = torch.einsum("ntd,nt->nd", scores, returns)
    moved = torch.einsum("ntd,ntk->ndk", scores, features)  # the estimate moves by this for each unit of c
    gram = torch.einsum("n,ndj,ndk->jk", weights, moved, moved)
    return torch.linalg.pinv(gram, hermitian=True) @ torch.einsum("n,ndk,nd->k", weights, moved, plain)


def gradient_variance(estimates: Tensor) -> Tensor:
    """Total variance, the sum over D, of gradient estimates [N, D] that were sampled independently (over N - 1)."""
    if estimates.ndim != 2 or len(estimates) < 2:
        raise ValueError(f"estimates must be [N, D] with N of at least 2, got {tuple(estimates.shape)}")
    return estimates.var(0).sum()


def score_functions(policy, inputs, actions: Tensor) -> Tensor:
    """grad log pi(a_t|s_t) over all parameters of the policy in order: [B, T, D]; for small policies.

    It is worked out for every action, those after EOS included: multiply by mask[..., None] where some do not count.
    """
    logprobs = policy.evaluate(inputs, actions)[0]
    parameters = list(policy.parameters())
    directions = torch.eye(logprobs.numel(), dtype=logprobs.dtype, device=logprobs.device)
    gradients = torch.autograd.grad(
        logprobs.flatten(), parameters, directions, is_grads_batched=True, allow_unused=True
    )
    columns = [
        logprobs.new_zeros(logprobs.numel(), p.numel()) if g is None else g.reshape(logprobs.numel(), -1)
        for g, p in zip(gradients, parameters)
    ]
    return torch.cat(columns, dim=1).reshape(*logprobs.shape, -1)


def flat_gradient(scalar: Tensor, policy) -> Tensor:
    """The gradient of a scalar over all parameters of the policy in order, as one vector [D]; 0 where it has none."""
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(scalar, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, parameters)])
