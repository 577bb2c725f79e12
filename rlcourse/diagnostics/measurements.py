"""Numbers that a healthy rollout determines, and a broken one gets wrong."""

import math

import torch
from torch import Tensor

from rlcourse.gpt2 import GPT2Policy
from rlcourse.losses import exact_kl
from rlcourse.masking import masked_mean
from rlcourse.rollout import Rollout

POSITIONS = 512  # as many counted actions are compared with the distribution they should come from


@torch.no_grad()
def measure(
    policy: GPT2Policy,
    rollout: Rollout,
    ref_policy: GPT2Policy | None = None,
    scores: Tensor | None = None,
    rewards: Tensor | None = None,
    returns: Tensor | None = None,
    rows: int = 2,
) -> dict[str, float]:
    """Numbers that a healthy rollout determines, to be taken after sampling and before the update.

    Merge them into the history of each iteration, and `diagnose` can tell more. Whatever is not passed is not measured.
    scores: [B]; rewards, returns: [B, T]. rows: so many responses are scored again one token at a time.
    """
    logits = policy.logits(rollout.inputs, rollout.actions)  # [B, T, V]
    log_pi = logits.log_softmax(-1)
    numbers = _scoring(policy, rollout, log_pi) | _one_token_at_a_time(policy, rollout, rows)
    numbers |= _as_sampled(log_pi, rollout) | _ends(rollout, policy.tokenizer.eos_token_id)
    if ref_policy is not None:
        ref_log_pi = ref_policy.logits(rollout.inputs, rollout.actions).log_softmax(-1)
        numbers |= _reference(rollout, log_pi, ref_log_pi)
        if scores is not None and rewards is not None:
            ref_logprobs = _chosen(ref_log_pi, rollout.actions)
            numbers |= _pay(rollout, scores, rewards, ref_logprobs, policy.tokenizer.eos_token_id)
    if scores is not None:
        numbers["score_std"] = scores.std().item()
    if returns is not None:
        error, count = torch.where(rollout.mask > 0, returns - rollout.values, 0), rollout.mask.sum()
        numbers["value_bias"] = (error.sum() / count).item()
        numbers["value_error"] = (error.square().sum() / count).sqrt().item()
        numbers["returns_std"] = returns[rollout.mask > 0].std().item()
    return numbers


def _scoring(policy: GPT2Policy, rollout: Rollout, log_pi: Tensor) -> dict[str, float]:
    counted, (again, _) = rollout.mask > 0, policy.evaluate(rollout.inputs, rollout.actions)
    logprobs = _chosen(log_pi, rollout.actions)
    return dict(
        ratio_gap=(logprobs - rollout.old_logprobs)[counted].abs().max().item(),
        repeat_gap=(logprobs - again)[counted].abs().max().item(),
    )


def _one_token_at_a_time(policy: GPT2Policy, rollout: Rollout, rows: int) -> dict[str, float]:
    """How far the recorded log-probabilities are from those of a model that is handed one token after the other.

    token_gap: the largest difference in nats. shift: the number of tokens by which the recorded ones are displaced, or
    nan when no displacement explains them. There is no padding, no batch, no cache and no dropout here.
    """
    gaps: dict[int, float] = {-1: 0.0, 0: 0.0, 1: 0.0}
    for row in range(min(rows, len(rollout))):
        n, old = int(rollout.mask[row].sum()), rollout.old_logprobs[row]
        steps = [next_logprobs(policy, rollout, row, t) for t in range(n + 1)]
        for t in range(n):
            for shift in gaps:
                if 0 <= t + shift:
                    gap = (steps[t + shift][rollout.actions[row, t]] - old[t]).abs().item()
                    gaps[shift] = max(gaps[shift], gap)
    shift = min(gaps, key=gaps.get)
    return dict(token_gap=gaps[0], shift=float(shift) if gaps[shift] < 0.05 else math.nan)


def next_logprobs(policy: GPT2Policy, rollout: Rollout, row: int, t: int) -> Tensor:
    """[V]: what follows the first t actions of a row, from the language model alone, at the sampling temperature."""
    inputs = rollout.inputs[row]
    ids = torch.cat([inputs.ids[0][inputs.mask[0] > 0], rollout.actions[row, :t]])
    training = policy.lm.training
    policy.lm.eval()
    logits = policy.lm(ids[None]).logits[0, -1].float() / inputs.temperature
    policy.lm.train(training)
    return (logits if inputs.blocked is None else logits.masked_fill(inputs.blocked[0], -torch.inf)).log_softmax(-1)


def _as_sampled(log_pi: Tensor, rollout: Rollout) -> dict[str, float]:
    """Do the actions look as if drawn from log_pi [B, T, V]?

    surprise_z: (surprisal of the actions under log_pi - its expectation, the entropy) in standard errors.
    temperature: by maximum likelihood, that of sampling relative to that of scoring; 1 where they agree, nan where the
    actions could hardly have been others and so tell nothing.
    cut: nats against the chance that at this temperature nothing less likely was ever drawn (top-k, top-p).
    """
    p = log_pi[rollout.mask > 0]  # [N, V]
    chosen = rollout.actions[rollout.mask > 0]
    some = slice(None, None, -(-len(p) // POSITIONS))
    p, chosen = p[some], chosen[some]
    logp = p.gather(-1, chosen[:, None])[:, 0]
    surprise = -logp + (p.exp() * p.clamp(min=-1e9)).sum(-1)  # [N], mean 0 if the actions come from p
    inverse = torch.ones((), device=p.device)
    for _ in range(8):  # Newton's method on the log-likelihood, which is concave in the inverse temperature
        q = (inverse * p).softmax(-1)
        mean = (q * p.clamp(min=-1e9)).sum(-1)
        variance = (q * (p.clamp(min=-1e9) - mean[:, None]).square()).sum(-1)
        inverse = (inverse + ((logp - mean).sum() / variance.sum()).clamp(-0.5, 0.5)).clamp(0.1, 10)
    q, order = (inverse * p).softmax(-1).sort(descending=True)
    likelier = q.cumsum(-1) - q  # [N, V]: mass of the tokens before each
    rank = (order == chosen[:, None]).long().argmax(-1)
    k, mass = int(rank.max()) + 1, likelier.gather(-1, rank[:, None]).max()
    within_k, within_p = q[:, :k].sum(-1), torch.where(likelier <= mass, q, 0).sum(-1)  # chances to stay inside, [N]
    cut = max(-x.clamp(max=1).log().sum().item() for x in (within_k, within_p))
    return dict(
        surprisal=-logp.mean().item(),
        surprise_z=(surprise.mean() / (surprise.std() / len(surprise) ** 0.5 + 1e-9)).item(),
        temperature=(1 / inverse).item() if variance.sum() > 50 else math.nan,
        cut=cut,
    )


def _ends(rollout: Rollout, eos: int) -> dict[str, float]:
    """Masks against the actions themselves: what comes after the first EOS, and whether EOS itself counts."""
    is_eos = rollout.actions == eos  # [B, T]
    after = is_eos.cumsum(1) - is_eos.long() > 0
    first = is_eos & ~after
    words = [row[:n] for row, n in zip(rollout.actions.tolist(), rollout.mask.sum(1).long().tolist())]
    return dict(
        after_end=(after & (rollout.mask > 0)).float().sum().item() / rollout.mask.sum().clamp(min=1).item(),
        end_missed=(first & (rollout.mask == 0)).sum().item() / max(1, first.sum().item()),
        ended=first.any(1).float().mean().item(),
        length=rollout.mask.sum(1).mean().item(),
        distinct=sum(len(set(row)) / max(1, len(row)) for row in words) / len(words),
    )


def _reference(rollout: Rollout, log_pi: Tensor, ref_log_pi: Tensor) -> dict[str, float]:
    """KL to the reference: sampled, exact, and their difference in standard errors; all in nats per response."""
    mask = rollout.mask
    ref_logprobs, logprobs = _chosen(ref_log_pi, rollout.actions), _chosen(log_pi, rollout.actions)
    exact = exact_kl(log_pi, ref_log_pi, mask).sum(1)  # [B]
    sampled = torch.where(mask > 0, logprobs - ref_logprobs, 0).sum(1)
    difference = sampled - exact
    return dict(
        ref_gap=(logprobs - ref_logprobs)[mask > 0].abs().max().item(),
        exact_kl=exact.mean().item(),
        kl_z=(difference.mean() / (difference.std() / len(exact) ** 0.5 + 1e-9)).item(),
        ref_nats=-masked_mean(ref_logprobs, mask).item(),
    )


def _pay(rollout: Rollout, scores: Tensor, rewards: Tensor, ref_logprobs: Tensor, eos: int) -> dict[str, float]:
    """What the rewards really pay, read off them by least squares: the weight of the score on the last action of each
    response, which must be 1, and the price of a nat of log-ratio, which must not be negative."""
    is_eos = rollout.actions == eos
    end = torch.where(is_eos.any(1), is_eos.long().argmax(1), rollout.actions.shape[1] - 1)
    due = torch.zeros_like(rewards).scatter(1, end[:, None], scores.to(rewards)[:, None])
    counted = rollout.mask > 0
    log_ratio = torch.where(counted, rollout.old_logprobs - ref_logprobs, 0)
    columns = torch.stack([due.flatten(), -log_ratio.flatten()], dim=1).double()
    weights = torch.linalg.lstsq(columns, rewards.flatten().double()).solution
    moved = log_ratio.abs().max() > 1e-3
    return dict(score_weight=weights[0].item(), kl_weight=weights[1].item() if moved else math.nan)


def _chosen(log_pi: Tensor, actions: Tensor) -> Tensor:
    return log_pi.gather(-1, actions[..., None])[..., 0]
