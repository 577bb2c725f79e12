"""`rlcourse.diagnostics`: each number against one found another way, each invariant broken, each finding provoked."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from rlcourse import data, diagnostics, museum
from rlcourse.diagnostics.findings import RULES
from rlcourse.diagnostics.invariants import INVARIANTS
from rlcourse.gpt2 import GPT2Policy, sample_responses
from rlcourse.masking import masked_whiten
from rlcourse.returns import kl_shaped_rewards

EOS = 0
replace = dataclasses.replace


@pytest.fixture(scope="module")
def policy():
    return GPT2Policy.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def ref_policy(policy):
    """Another policy near by, as a reference is after some training."""
    ref, generator = policy.frozen_copy(), torch.Generator().manual_seed(5)
    for p in ref.lm.parameters():
        p.data += 0.02 * p.data.std().nan_to_num() * torch.randn(p.shape, generator=generator)
    return ref


def prompts(count: int) -> list[str]:
    return (data.load_prompts("train") * 2)[:count]


def sample(policy, seed: int = 0, count: int = 32, **kwargs):
    return sample_responses(policy, prompts(count), 24, generator=torch.Generator().manual_seed(seed), **kwargs)


@pytest.fixture(scope="module")
def rollout(policy):
    return sample(policy)


@pytest.fixture(scope="module")
def paid(rollout, ref_policy):
    """scores [B], rewards [B, T], reference log-probabilities [B, T]."""
    scores = torch.randn(len(rollout), generator=torch.Generator().manual_seed(3))
    ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
    return scores, kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, 0.1), ref_logprobs


def report(policy, rollout, ref_policy, paid, **kwargs):
    return diagnostics.check_rollout(policy, rollout, ref_policy, paid[0], paid[1], **kwargs)


# -- numbers -------------------------------------------------------------------------------------------------------


def test_a_healthy_rollout_measures_as_it_should(policy, ref_policy, rollout, paid):
    m = diagnostics.measure(policy, rollout, ref_policy, paid[0], paid[1])
    assert m["token_gap"] < 1e-4 and m["ratio_gap"] < 1e-4 and m["repeat_gap"] < 1e-4 and m["shift"] == 0
    assert m["after_end"] == m["end_missed"] == 0
    assert abs(m["surprise_z"]) < 4 and abs(m["kl_z"]) < 4 and m["cut"] < 10
    assert m["temperature"] == pytest.approx(1, abs=0.1)
    assert m["score_weight"] == pytest.approx(1, abs=1e-4) and m["kl_weight"] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.6, 0.8, 1.25, 1.6])
def test_the_temperature_of_sampling_is_read_off_the_actions(policy, temperature):
    sampled = sample(policy, temperature=temperature, count=64)
    scored_at_1 = replace(sampled, inputs=policy.encode(prompts(64)))
    assert diagnostics.measure(policy, sampled, rows=1)["temperature"] == pytest.approx(1, rel=0.1)
    m = diagnostics.measure(policy, scored_at_1, rows=1)
    assert m["temperature"] == pytest.approx(temperature, rel=0.12)
    assert (m["surprise_z"] < 0) == (temperature < 1) and abs(m["surprise_z"]) > 5


def nucleus(policy, mass: float):
    """A copy of the policy that draws from the likeliest tokens that hold this mass together."""

    def run(**kwargs):
        output = policy._run(**kwargs)
        p, order = output.logits.softmax(-1).sort(descending=True)
        far = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, p.cumsum(-1) - p > mass)
        output.logits = output.logits.masked_fill(far, -torch.inf)
        return output

    cut = copy.copy(policy)
    cut._run = run
    return cut


@pytest.mark.parametrize("mass", [0.8, 0.9])
def test_a_nucleus_is_noticed_and_a_temperature_is_no_cut(policy, mass):
    rollout = museum._recorded(policy, sample(nucleus(policy, mass), count=64))
    assert diagnostics.measure(policy, rollout, rows=1)["cut"] > 15
    cold = replace(sample(policy, temperature=0.7, count=64), inputs=policy.encode(prompts(64)))
    assert diagnostics.measure(policy, cold, rows=1)["cut"] < 10


def test_the_cut_is_exponential_in_healthy_rollouts(policy):
    """-log of a uniform number has mean 1: the chance is a chance."""
    cuts = [diagnostics.measure(policy, sample(policy, seed=s, count=16), rows=0)["cut"] for s in range(12)]
    assert 0.3 < np.mean(cuts) < 3 and max(cuts) < 10


def test_ends_are_counted_by_hand(policy, rollout):
    actions = torch.tensor([[5, 6, EOS, EOS], [EOS, EOS, EOS, EOS], [1, 2, 3, 4], [7, 8, 7, EOS]])

    def ends(*lengths):
        mask = torch.tensor([[1.0] * n + [0.0] * (4 - n) for n in lengths])
        zeros = torch.zeros(4, 4)
        some = museum.Rollout(rollout.inputs[torch.arange(4)], actions, mask, zeros, zeros)
        return diagnostics.measure(policy, some, rows=0)

    right = ends(3, 1, 4, 4)
    assert right["after_end"] == right["end_missed"] == 0
    assert right["ended"] == 0.75 and right["length"] == 3
    assert right["distinct"] == pytest.approx((1 + 1 + 1 + 3 / 4) / 4)
    assert ends(4, 4, 4, 4)["after_end"] == pytest.approx(4 / 16)  # one in the first row, three in the second
    missed = ends(2, 1, 4, 3)
    assert missed["end_missed"] == pytest.approx(2 / 3) and missed["after_end"] == 0


def test_what_rewards_pay_is_read_off_them(policy, ref_policy, rollout, paid):
    scores, _, ref_logprobs = paid
    log_ratio = torch.where(rollout.mask > 0, rollout.old_logprobs - ref_logprobs, 0)
    lengths = rollout.mask.sum(1).long().tolist()
    for weight, price in ((1.0, 0.3), (0.5, 0.0), (2.0, -0.2)):
        rewards = -price * log_ratio
        for row, n in enumerate(lengths):
            rewards[row, n - 1] += weight * scores[row]
        m = diagnostics.measure(policy, rollout, ref_policy, scores, rewards)
        assert m["score_weight"] == pytest.approx(weight, abs=1e-4)
        assert m["kl_weight"] == pytest.approx(price, abs=1e-4)


def test_value_bias_and_error(policy, rollout):
    returns = rollout.values + 2.0
    returns[rollout.mask == 0] = 1e9
    m = diagnostics.measure(policy, rollout, returns=returns, rows=0)
    assert m["value_bias"] == pytest.approx(2) and m["value_error"] == pytest.approx(2)


def test_kl_numbers_against_a_loop(policy, ref_policy, rollout):
    m = diagnostics.measure(policy, rollout, ref_policy, rows=0)
    p, q = (x.logits(rollout.inputs, rollout.actions).log_softmax(-1).double() for x in (policy, ref_policy))
    lengths, exact, sampled = rollout.mask.sum(1).long().tolist(), [], []
    for b, n in enumerate(lengths):
        exact.append(sum((p[b, t].exp() * (p[b, t] - q[b, t])).sum().item() for t in range(n)))
        sampled.append(sum((p - q)[b, t, rollout.actions[b, t]].item() for t in range(n)))
    difference = np.array(sampled) - exact
    assert m["exact_kl"] == pytest.approx(np.mean(exact), rel=1e-3)
    z = difference.mean() / (difference.std(ddof=1) / len(exact) ** 0.5)
    assert m["kl_z"] == pytest.approx(z, rel=1e-2, abs=1e-2)


def test_measuring_leaves_no_trace(policy, ref_policy, rollout):
    policy.lm.train()
    state, before = torch.get_rng_state(), policy.lm.training
    diagnostics.measure(policy, rollout, rows=1)
    assert policy.lm.training == before and all(m.training for m in policy.lm.modules())
    policy.train()
    torch.set_rng_state(state)
    diagnostics.measure(policy, rollout, ref_policy)
    assert torch.get_rng_state().equal(state)
    assert all(p.grad is None for p in policy.parameters()) and not policy.lm.training


# -- invariants ----------------------------------------------------------------------------------------------------


def test_a_healthy_rollout_passes_every_check(policy, ref_policy, rollout, paid):
    advantages = masked_whiten(paid[1], rollout.mask)
    found = report(policy, rollout, ref_policy, paid, advantages=advantages)
    assert found.failed == []
    at_start = diagnostics.check_rollout(policy, rollout, policy.frozen_copy(), at_start=True)
    assert at_start.failed == []
    names = {check.name for check in [*found, *at_start]}
    assert names == {name for name, *_ in INVARIANTS}


@pytest.mark.parametrize("seed", range(1, 6))
def test_no_false_alarm_on_other_rollouts(policy, ref_policy, seed):
    rollout = sample(policy, seed=seed)
    assert diagnostics.check_rollout(policy, rollout, ref_policy).failed == []


def test_a_blocked_token_and_a_temperature_are_scored_as_they_were_sampled(policy):
    rollout = sample(policy, temperature=0.8, blocked=[5, 6, 7])
    assert diagnostics.check_rollout(policy, rollout).failed == []


def sampled_by(fault):
    return lambda policy, rollout: fault(policy, prompts(32), 24, generator=torch.Generator().manual_seed(0))


BROKEN = {  # what is broken -> the checks that must notice
    "top_k": (sampled_by(museum.top_k), {"nothing is cut off", "as surprising as expected"}),
    "cold": (sampled_by(museum.cold_sampling), {"one token at a time", "ratio 1 before any update"}),
    "padding": (sampled_by(museum.padding_counted), {"nothing counts after the end"}),
    "eos": (sampled_by(museum.eos_masked), {"EOS counts"}),
    "stale": (
        lambda policy, rollout: replace(rollout, old_logprobs=rollout.old_logprobs - 0.1 * rollout.mask),
        {"one token at a time", "ratio 1 before any update"},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rollout_is_noticed(policy, rollout, name):
    make, expected = BROKEN[name]
    assert expected <= set(diagnostics.check_rollout(policy, make(policy, rollout)).failed)


@pytest.mark.parametrize(
    "prepare, sample_fault, expected",
    [
        (museum.dropout_on, museum.sample_responses, {"scored twice, scored alike", "ratio 1 before any update"}),
        (museum.reads_ahead, museum.scored_again, {"one token at a time", "probabilities sum to 1"}),
    ],
)
def test_a_broken_policy_is_noticed(policy, prepare, sample_fault, expected):
    broken, _ = prepare(copy.deepcopy(policy), policy.frozen_copy())
    rollout = sample_fault(broken, prompts(16), 24, generator=torch.Generator().manual_seed(0))
    assert expected <= set(diagnostics.check_rollout(broken, rollout).failed)


def test_a_broken_reference_is_noticed(policy, ref_policy, rollout):
    assert diagnostics.check_rollout(policy, rollout, ref_policy, at_start=True).failed == [
        "reference identical at the start"
    ]


@pytest.mark.parametrize(
    "shape, expected",
    [
        (museum.kl_paid, "leaving the reference costs"),
        (museum.score_on_first, "the score is on the last action"),
        (museum.score_on_last_column, "the score is on the last action"),
    ],
)
def test_broken_pay_is_noticed(policy, ref_policy, rollout, paid, shape, expected):
    scores, _, ref_logprobs = paid
    rewards = shape(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, 0.1)
    assert report(policy, rollout, ref_policy, (scores, rewards)).failed == [expected]


def test_advantages_whitened_over_padding_are_noticed(policy, rollout):
    raw = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(1)) * rollout.mask + rollout.mask
    wrong = (raw - raw.mean()) / raw.std()
    assert diagnostics.check_rollout(policy, rollout, advantages=wrong).failed == ["advantages are whitened"]


def test_nothing_to_check(policy, rollout):
    with pytest.raises(ValueError, match="mask is 0 everywhere"):
        diagnostics.check_rollout(policy, replace(rollout, mask=torch.zeros_like(rollout.mask)))


def test_a_report_is_a_table(policy, rollout):
    text = diagnostics.check_rollout(policy, museum.eos_masked(policy, prompts(16), 24))._repr_markdown_()
    lines = text.splitlines()
    assert len({line.count("|") for line in lines}) == 1 and "**NO**" in text and "EOS counts" in text
    assert diagnostics.diagnose([dict(score=0.1)])._repr_markdown_() == "Nothing to report."
    table = diagnostics.diagnose(history(kl_weight=-0.045))._repr_markdown_()
    assert table.startswith("| name | evidence | likely cause | try this |") and "kl_coef" in table


# -- histories -----------------------------------------------------------------------------------------------------


def history(n: int = 30, **columns) -> list[dict]:
    """A made-up healthy run; a column is a number, or a function of the share of the run that is over."""
    wave = [0.02 * math.sin(7 * i) for i in range(n)]
    healthy = dict(
        score=lambda x: 0.2 + 0.5 * x, kl=lambda x: 6 * x, entropy=lambda x: 4 - 0.3 * x, policy_loss=-0.02,
        value_loss=0.1, grad_norm=1.5, approx_kl=0.01, clip_frac=0.1, first_ratio=1.0,
        explained_variance=lambda x: 0.1 + 0.3 * x, repeat_gap=0.0, token_gap=1e-5, shift=0.0, temperature=1.0,
        surprise_z=0.1, cut=1.0, after_end=0.0, end_missed=0.0, ref_gap=lambda x: 2 * x, score_weight=1.0,
        kl_weight=0.045, returns_std=0.45, value_bias=0.02, ref_nats=lambda x: 3.9 - 0.5 * x, length=20.0,
    )  # fmt: skip
    columns = {key: c if callable(c) else (lambda x, c=c: c) for key, c in (healthy | columns).items()}
    rows = [{key: c(i / (n - 1)) for key, c in columns.items()} for i in range(n)]
    return [row | dict(score=row["score"] + w) for row, w in zip(rows, wave)]


PROVOKED = {
    "not a number": dict(value_loss=lambda x: 0.1 if x < 0.5 else math.nan),
    "dropout is on": dict(repeat_gap=4.0, first_ratio=0.01, clip_frac=0.8),
    "log-probabilities are shifted": dict(token_gap=9.0, shift=1.0, temperature=2.3, surprise_z=30.0),
    "padding is counted": dict(after_end=0.1, temperature=1.15, surprise_z=4.0, score_weight=0.7),
    "EOS is masked": dict(end_missed=1.0, score_weight=0.7),
    "sampling is cut off": dict(cut=70.0, temperature=0.7, surprise_z=-20.0),
    "temperature differs": dict(temperature=0.7, surprise_z=-20.0, first_ratio=22.0, clip_frac=0.7),
    "the reference moves along": dict(ref_gap=0.0),
    "KL is paid for": dict(kl_weight=-0.045),
    "the score is on the wrong token": dict(score_weight=0.0),
    "KL estimate below 0": dict(kl=lambda x: -2 * x),
    "reward scale": dict(returns_std=45.0, value_loss=1000.0, grad_norm=200.0, value_bias=20.0),
    "ratio not 1 at the start": dict(first_ratio=0.5),
    "steps too large": dict(approx_kl=3.0, clip_frac=0.8),
    "values pulled away from returns": dict(value_bias=2.0),
    "one loss dominates": dict(grad_norm=500.0),
    "KL runs away": dict(kl=lambda x: 80 * x),
    "entropy collapse": dict(entropy=lambda x: 4 - 3.9 * x),
    "critic worse than a constant": dict(explained_variance=-1.0),
    "nothing moves": dict(clip_frac=0.0),
    "reward flat": dict(score=0.2),
    "reward up, fluency down": dict(ref_nats=lambda x: 3.9 + 2 * x),
    "length drifts": dict(length=lambda x: 20 - 12 * x),
}


def test_every_finding_is_provoked():
    assert set(PROVOKED) == {rule.name for rule in RULES} and len(RULES) == len(PROVOKED)
    assert all(set(rule.unless) <= set(PROVOKED) for rule in RULES)


@pytest.mark.parametrize("name", PROVOKED)
def test_a_symptom_is_found_alone(name):
    found = diagnostics.diagnose(history(**PROVOKED[name]))
    assert [finding.name for finding in found] == [name]
    assert found[0].evidence and found[0].likely_cause and found[0].try_this


@pytest.mark.parametrize("n", [1, 2, 5, 10, 100])
def test_a_healthy_history_raises_no_alarm(n):
    assert diagnostics.diagnose(history(n) if n > 1 else history(2)[:1]) == []


def test_a_history_of_other_people():
    """Whatever columns there are: no error, no alarm about what is not there."""
    assert diagnostics.diagnose([dict(score=0.1 * i) for i in range(20)]) == []
    assert [f.name for f in diagnostics.diagnose([dict(kl=9.0 * i, score=0.1 * i) for i in range(20)])] == [
        "KL runs away"
    ]
    assert diagnostics.diagnose([dict(kl=9.0 * i, score=0.1 * i) for i in range(20)], max_kl=500) == []
    assert diagnostics.diagnose([dict(explained_variance=math.nan)] * 20) == []


def test_an_empty_history():
    with pytest.raises(ValueError, match="history is empty"):
        diagnostics.diagnose([])
