"""What a training history says is wrong."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlcourse.diagnostics.report import CUT, LIMIT, Finding, Report


@dataclass(frozen=True)
class Rule:
    """How a finding is recognised: `read` takes the curves {key: [iterations]} and returns its evidence, or ""."""

    name: str
    likely_cause: str
    try_this: str
    unless: tuple[str, ...]  # findings which explain this one as well
    read: Callable[[dict], str]


RULES: list[Rule] = []  # in the order in which they stand below


def diagnose(history: list[dict], max_kl: float = 20.0) -> Report:
    """Read a training history, one dict an iteration; -> the findings, the most specific first, or none.

    Keys are those of `ppo_update`, `score` (mean of the batch), `kl` (nats per response) and, the more the better,
    those of `measure`. A finding whose keys are missing is left out. max_kl: nats per response beyond which KL has run
    away.
    Raises ValueError for an empty history.
    """
    if not history:
        raise ValueError("history is empty: it needs at least one iteration")
    keys = dict.fromkeys(key for row in history for key in row)
    curves = {key: np.array([row.get(key, np.nan) for row in history], dtype=float) for key in keys}
    curves["max_kl"] = np.array([max_kl])
    evidence = {rule.name: _says(rule, curves) for rule in RULES}
    explained = {rule.name for rule in RULES if any(evidence[name] for name in rule.unless)}
    return Report(
        Finding(rule.name, evidence[rule.name], rule.likely_cause, rule.try_this)
        for rule in RULES
        if evidence[rule.name] and rule.name not in explained
    )


def _says(rule: Rule, curves: dict) -> str:
    try:
        return rule.read(curves)
    except KeyError:  # this history does not hold what the rule reads
        return ""


def _early(x: np.ndarray) -> float:
    return _mean(x[: max(1, len(x) // 5)])


def _late(x: np.ndarray) -> float:
    return _mean(x[-max(1, len(x) // 5) :])


def _mean(x: np.ndarray) -> float:
    return float(x[np.isfinite(x)].mean()) if np.isfinite(x).any() else math.nan


def _drift(x: np.ndarray) -> float:
    return _late(x) - _early(x)


def _rule(name: str, likely_cause: str, try_this: str, unless: tuple[str, ...] = ()):
    def enter(read: Callable[[dict], str]) -> Callable[[dict], str]:
        RULES.append(Rule(name, likely_cause, try_this, unless, read))
        return read

    return enter


@_rule(
    "not a number",
    "a step far too large, a reward or a log-ratio that overflowed",
    "stop here; print the last finite iteration, lower the learning rate, look for log(0)",
)
def _not_a_number(c) -> str:
    bad = [k for k in ("policy_loss", "value_loss", "grad_norm", "score") if k in c and not np.isfinite(c[k]).all()]
    return f"{bad[0]} from iteration {int((~np.isfinite(c[bad[0]])).argmax()) + 1} on" if bad else ""


@_rule(
    "dropout is on",
    "something called train() on the language model",
    "lm.eval() in sampling, scoring and update alike",
)
def _dropout(c) -> str:
    gap = float(np.median(c["repeat_gap"]))
    return f"the same tokens scored twice differ by {gap:.2g} nats" if gap > 0.01 else ""


@_rule(
    "log-probabilities are shifted",
    "logits gathered one position too early or too late",
    "score one token at a time and compare; logits at n predict token n + 1",
)
def _shifted(c) -> str:
    shift = c["shift"][c["token_gap"] > 0.05]
    if len(shift) < len(c["shift"]) / 2 or not np.isin(shift, (-1, 1)).mean() > 0.5:
        return ""
    off = f"{c['token_gap'].max():.2g} nats off"
    return f"recorded log-probabilities are those {np.nanmedian(shift):+.0f} position away, {off}"


@_rule(
    "padding is counted",
    "a mask of ones, or one that ends too late",
    "the mask is 1 up to and with the first EOS",
)
def _padding(c) -> str:
    share = float(np.mean(c["after_end"]))
    return f"{share:.0%} of the counted actions stand after an EOS" if share > 0 else ""


@_rule(
    "EOS is masked",
    "pad = EOS, and every EOS taken for padding",
    "count the first EOS of each row",
)
def _no_eos(c) -> str:
    share = float(np.mean(c["end_missed"]))
    return f"{share:.0%} of the ends do not count" if share > 0 else ""


@_rule(
    "sampling is cut off",
    "top-k or top-p in sampling (often a default of generate), full softmax in scoring",
    "sample with neither, or score with the same cut",
    unless=("dropout is on", "log-probabilities are shifted", "padding is counted"),
)
def _cut_off(c) -> str:
    nats = float(np.mean(c["cut"]))
    return "" if nats < CUT else f"unlikely tokens stay away: odds of e^-{nats:.0f} an iteration"


@_rule(
    "temperature differs",
    "sampled at one temperature, scored at another",
    "keep the temperature with the rollout, and divide the logits by it everywhere",
    unless=("dropout is on", "log-probabilities are shifted", "padding is counted", "sampling is cut off"),
)
def _tempered(c) -> str:
    told = np.isfinite(c["temperature"])
    temperature, z = _mean(c["temperature"]), _mean(c["surprise_z"][told]) * told.sum() ** 0.5
    if not told.any() or abs(z) < LIMIT or abs(math.log(temperature)) < 0.1:
        return ""
    return (
        f"actions look drawn at {temperature:.2f} times the temperature they are scored at ({z:+.0f} standard errors)"
    )


@_rule(
    "the reference moves along",
    "the reference is the policy under a second name, or shares its weights",
    "copy.deepcopy before training, and no gradient",
)
def _moving_reference(c) -> str:
    still = (c["ref_gap"][1:] == 0) & (c["approx_kl"][:-1] > 1e-6)
    return (
        "the policy moved, its distance to the reference stayed exactly 0" if still.any() and still.mean() > 0.5 else ""
    )


@_rule(
    "the score is on the wrong token",
    "paid at the first action, in the last column, or spread",
    "pay it at the last action that counts",
    unless=("padding is counted", "EOS is masked", "dropout is on"),
)
def _score_misplaced(c) -> str:
    weight = _early(c["score_weight"])
    return (
        ""
        if abs(weight - 1) < 0.02
        else f"the last action is paid {round(weight, 2) + 0:.2f} of the score at the beginning"
    )


@_rule(
    "KL is paid for",
    "a flipped sign; policy and reference swapped",
    "r_t = ... - kl_coef * (logprobs - ref_logprobs)",
    unless=("the score is on the wrong token", "padding is counted"),
)
def _kl_is_paid(c) -> str:
    price = np.nanmedian(c["kl_weight"]) if np.isfinite(c["kl_weight"]).any() else 0.0
    return f"rewards hold {-price:+.3g} for each nat of log-ratio" if price < -1e-4 else ""


@_rule(
    "KL estimate below 0",
    "policy and reference swapped; actions that are not the policy's own; padding",
    "compare with the exact KL on one batch: check_rollout",
)
def _negative_kl(c) -> str:
    kl = c["kl"]
    return f"mean KL {kl.mean():.2f}, negative in {(kl < 0).mean():.0%} of the iterations" if kl.mean() < -0.3 else ""


@_rule(
    "reward scale",
    "scores so large that the price of KL is nothing beside them, and the critic takes the whole gradient",
    "divide the scores by their standard deviation, or raise kl_coef alike",
)
def _reward_scale(c) -> str:
    name = "returns_std" if "returns_std" in c else "value_loss"
    size, limit = _early(c[name]), dict(returns_std=10, value_loss=50)[name]
    return f"{name} is {size:.3g} at the beginning" if size > limit else ""


@_rule(
    "ratio not 1 at the start",
    "sampling and scoring differ: dropout, temperature, top-k, half precision",
    "check_rollout on one batch tells which",
    unless=("dropout is on", "temperature differs"),
)
def _ratio(c) -> str:
    ratio = c["first_ratio"][np.abs(np.log(np.maximum(c["first_ratio"], 1e-30))).argmax()]
    return f"first_ratio is {ratio:.3g} at its worst" if abs(math.log(max(ratio, 1e-30))) > 0.1 else ""


@_rule(
    "steps too large",
    "learning rate or number of epochs too high",
    "a tenth of the learning rate; target_kl as a guard",
    unless=("ratio not 1 at the start", "dropout is on", "temperature differs", "reward scale"),
)
def _steps_too_large(c) -> str:
    kl, clipped = float(c["approx_kl"].max()), float(c["clip_frac"].mean())
    if kl < 1 and clipped < 0.5:
        return ""
    return f"approx_kl up to {kl:.3g} nats an action, up to {c['clip_frac'].max():.0%} of the actions clipped"


@_rule(
    "values pulled away from returns",
    "the policy loss trains the critic: the baseline carries gradient",
    "detach values before they become advantages",
    unless=("reward scale",),
)
def _critic_pulled(c) -> str:
    bias, spread = _late(c["value_bias"]), _late(c["returns_std"])
    return f"values lie {bias:.2f} below the returns, which spread by {spread:.2f}" if bias > 2 * spread else ""


@_rule(
    "one loss dominates",
    "vf_coef, or another weight, so large that clipping the gradient leaves the policy nothing",
    "print the gradient norm of each term; lower the weight",
    unless=("reward scale", "steps too large"),
)
def _one_loss_dominates(c) -> str:
    norm = float(np.median(c["grad_norm"]))
    return f"grad_norm is {norm:.3g}" if norm > 20 else ""


@_rule(
    "KL runs away",
    "nothing holds the policy: kl_coef too low, KL sign, reward with a loophole",
    "raise kl_coef, or let AdaptiveKL; read the texts",
)
def _kl_runs_away(c) -> str:
    return f"KL {_late(c['kl']):.1f} nats per response at the end" if _late(c["kl"]) > c["max_kl"][0] else ""


@_rule(
    "entropy collapse",
    "steps too large, or one text earns the most",
    "lower the learning rate; an entropy bonus; more KL",
)
def _entropy_collapse(c) -> str:
    early, late = _early(c["entropy"]), _late(c["entropy"])
    return f"entropy from {early:.2f} to {late:.2f} nats an action" if late < 0.4 * c["entropy"].max() else ""


@_rule(
    "critic worse than a constant",
    "value learning rate too high or too low; returns and values mixed up; or returns that hardly vary any more",
    "watch value_loss; give the head its own learning rate",
)
def _critic_fails(c) -> str:
    late = _late(c["explained_variance"])
    return f"explained variance {late:.2f} at the end" if late < -0.3 else ""


@_rule(
    "nothing moves",
    "learning rate or advantages near 0; frozen parameters; a constant reward",
    "check grad_norm, the spread of the scores, requires_grad",
)
def _nothing_moves(c) -> str:
    return f"at most {c['clip_frac'].max():.2%} of the actions clipped" if c["clip_frac"].max() < 0.001 else ""


@_rule(
    "reward flat",
    "no credit reaches the actions, or steps too small",
    "first exclude the bugs above; then the learning rate",
)
def _reward_flat(c) -> str:
    score, k = c["score"], len(c["score"]) // 5
    if k < 2:
        return ""
    noise = float(np.std(np.diff(score))) / math.sqrt(k)  # of a difference of two means of k
    return (
        f"score {_early(score):.2f} at the beginning, {_late(score):.2f} at the end"
        if _drift(score) < 3 * noise
        else ""
    )


@_rule(
    "reward up, fluency down",
    "the policy found a loophole in the reward",
    "raise kl_coef; add a fluency term; read the texts",
)
def _fluency_falls(c) -> str:
    if not (_drift(c["score"]) > 0 and _drift(c["ref_nats"]) > 0.7):
        return ""
    return f"score {_drift(c['score']):+.2f}, surprisal under the reference {_drift(c['ref_nats']):+.2f} nats a token"


@_rule(
    "length drifts",
    "the reward depends on length; EOS is not trained",
    "plot score against length; check the masks",
)
def _length_drifts(c) -> str:
    early, late = _early(c["length"]), _late(c["length"])
    return f"from {early:.1f} to {late:.1f} actions" if not 0.7 < late / early < 1.3 else ""
