"""What must hold between sampling and the first update."""

import torch
from torch import Tensor

from rlcourse.diagnostics.measurements import measure, next_logprobs
from rlcourse.diagnostics.report import CUT, LIMIT, Check, Report
from rlcourse.gpt2 import GPT2Policy
from rlcourse.rollout import Rollout


@torch.no_grad()
def check_rollout(
    policy: GPT2Policy,
    rollout: Rollout,
    ref_policy: GPT2Policy | None = None,
    scores: Tensor | None = None,
    rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    at_start: bool = False,
    rows: int = 2,
) -> Report:
    """What must hold between sampling and the first update, each with what it means and what usually breaks it.

    scores: [B], rewards: [B, T]: what was paid. advantages: [B, T] as the loss takes them, if they should be whitened.
    at_start: nothing has been trained yet, so the reference must be identical. Only what is passed is checked.
    Raises ValueError when nothing in the rollout counts.
    """
    if not rollout.mask.any():
        raise ValueError("rollout.mask is 0 everywhere: no action counts, so there is nothing to check")
    m = measure(policy, rollout, ref_policy, scores, rewards, rows=rows)
    m["probability_sum"] = _probability_sum(policy, rollout)
    if not at_start:
        m.pop("ref_gap", None)
    if advantages is not None:
        counted = advantages[rollout.mask > 0]
        m["advantage_mean"], m["advantage_std"] = counted.mean().item(), counted.std(correction=0).item()
    close = 0.1 if policy.autocasts else 1e-3  # nats; half precision rounds
    found = Report()
    for name, keys, holds, meaning, cause in INVARIANTS:
        if all(key in m for key in keys):
            numbers = [m[key] for key in keys]
            text = ", ".join(f"{key} {number:.3g}" for key, number in zip(keys, numbers))
            found.append(Check(name, bool(holds(close, *numbers)), text, meaning, cause))
    return found


INVARIANTS = [
    (
        "one token at a time",
        ("token_gap",),
        lambda close, gap: gap < close,
        "the recorded log-probabilities are those of a model that is handed one token at a time (largest gap, nats)",
        "logits read one position too early or late; another temperature; dropout; padding without position ids",
    ),
    (
        "scored twice, scored alike",
        ("repeat_gap",),
        lambda close, gap: gap < close,
        "evaluating the same tokens twice gives the same numbers (largest gap, nats)",
        "dropout is on: something called train() on the language model",
    ),
    (
        "ratio 1 before any update",
        ("ratio_gap",),
        lambda close, gap: gap < close,
        "new and old log-probabilities agree before the first step (largest gap, nats)",
        "sampling and scoring differ: temperature, top-k, dropout, half precision; or an update came before",
    ),
    (
        "probabilities sum to 1",
        ("probability_sum",),
        lambda close, total: abs(total - 1) < close,
        "over all tokens that could come first, the scores are one distribution",
        "the policy sees the token it is asked about; logits were changed without a new softmax",
    ),
    (
        "EOS counts",
        ("end_missed",),
        lambda close, share: share == 0,
        "the EOS that ends a response is an action that was chosen (share of ends that do not count)",
        "pad = EOS, and every EOS is masked away: the policy never learns to stop",
    ),
    (
        "nothing counts after the end",
        ("after_end",),
        lambda close, share: share == 0,
        "what stands after the first EOS was not chosen (share of counted actions)",
        "the mask is missing or all ones; the padding is trained",
    ),
    (
        "as surprising as expected",
        ("surprise_z", "temperature"),
        lambda close, z, temperature: abs(z) < LIMIT,
        "the surprisal of the actions is on average the entropy of what scores them (standard errors)",
        "sampled at another temperature, with top-k or top-p, or scored at the wrong position",
    ),
    (
        "nothing is cut off",
        ("cut",),
        lambda close, nats: nats < CUT,
        "unlikely tokens occur as often as they should (nats against the chance that they stay away)",
        "top-k or top-p in sampling, the full softmax in scoring",
    ),
    (
        "reference identical at the start",
        ("ref_gap",),
        lambda close, gap: gap < close,
        "before any update, policy and reference give the same log-probabilities (largest gap, nats)",
        "reference loaded from another checkpoint; another temperature; dropout",
    ),
    (
        "KL as sampled = exact KL",
        ("exact_kl", "kl_z"),
        lambda close, kl, z: kl > -close and abs(z) < LIMIT,
        "the exact KL is never negative, and the sampled one is it on average (standard errors)",
        "the actions do not come from this policy; policy and reference swapped",
    ),
    (
        "the score is on the last action",
        ("score_weight",),
        lambda close, weight: abs(weight - 1) < 0.05,
        "the share of each score that its response's last action is paid",
        "the score on the first token, on padding, or on every token; EOS not counted",
    ),
    (
        "leaving the reference costs",
        ("kl_weight",),
        lambda close, price: not price < 0,
        "the price of a nat of log-ratio, read off the rewards (nan before anything has moved)",
        "the sign of the KL term is flipped; policy and reference swapped",
    ),
    (
        "advantages are whitened",
        ("advantage_mean", "advantage_std"),
        lambda close, mean, std: abs(mean) < 0.01 and abs(std - 1) < 0.02,
        "over the counted actions of the batch, the mean is 0 and the standard deviation 1",
        "whitened per minibatch or over padding; not whitened at all",
    ),
]


def _probability_sum(policy: GPT2Policy, rollout: Rollout, likeliest: int = 512) -> float:
    """Scores of one row's likeliest first tokens, summed, and what the language model leaves for the rest."""
    truth = next_logprobs(policy, rollout, 0, 0)
    tokens = truth.topk(min(likeliest, len(truth))).indices
    inputs = rollout.inputs[torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)]
    logprobs, _ = policy.evaluate(inputs, tokens[:, None])
    return (logprobs.exp().sum() + 1 - truth[tokens].exp().sum()).item()
