import copy
import itertools
import math

import pytest
import torch

from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.masking import masked_whiten
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.reinforce import reinforce_update
from rlcourse.rnn import RNNPolicy

V, T, B = 3, 3, 6
NAN = float("nan")
EXACT = dict(rtol=0, atol=1e-10)


def randomise(policy, randn):
    for parameter in policy.parameters():
        parameter.data = randn(*parameter.shape)
    return policy


@pytest.fixture
def mdp():
    return TokenMDP(V, T, lambda actions, mask: actions.double() - 0.3 * (actions == 2), eos=2)


@pytest.fixture(params=[None, 1], ids=["every state a row", "shared rows"])
def policy(request, randn):
    return randomise(TabularPolicy(V, T, request.param), randn)


@pytest.fixture
def rollout(mdp, policy, generator):
    rollout, _ = mdp.sample(policy, B, generator)
    assert 0 < (rollout.mask == 0).sum() and rollout.mask[:, 1:].any()  # lengths differ
    return rollout


def update(policy, rollout, *arguments, **options):
    """One step of length 1: what it subtracted from the tables of a copy is the gradient. -> logits, values, stats."""
    moved = copy.deepcopy(policy)
    stats = reinforce_update(moved, torch.optim.SGD(moved.parameters(), lr=1.0), rollout, *arguments, **options)
    return (*(a.data - b.data for a, b in zip(policy.parameters(), moved.parameters())), stats)


def by_hand(policy, rollout, advantages, returns, vf_coef, ent_coef):
    """The gradient in closed form, and the parts of the loss, in loops over the counted actions."""
    logits, values = torch.zeros_like(policy.logits_table), torch.zeros_like(policy.values_table)
    policy_loss = critic_loss = entropy = 0.0
    counted = [(b, t) for b, t in itertools.product(range(B), range(T)) if rollout.mask[b, t]]
    for b, t in counted:
        state = 0
        for token in rollout.actions[b, :t].tolist():
            state = state * V + token + 1
        row, action, a = policy.rows[state], rollout.actions[b, t].item(), advantages[b, t].item()
        p = policy.logits_table[row].detach().softmax(0).tolist()
        h = -sum(x * math.log(x) for x in p)
        for v in range(V):
            logits[row, v] -= a * ((v == action) - p[v]) / B  # a sum over actions, a mean over rows
            logits[row, v] -= ent_coef * -p[v] * (math.log(p[v]) + h) / len(counted)
        policy_loss -= a * math.log(p[action]) / B
        entropy += h / len(counted)
        if returns is not None:
            error = policy.values_table[row].item() - returns[b, t].item()
            values[row] += vf_coef * error / len(counted)
            critic_loss += error**2 / 2 / len(counted)
    return logits.data, values.data, dict(policy_loss=policy_loss, value_loss=critic_loss, entropy=entropy)


@pytest.mark.parametrize("vf_coef, ent_coef", [(0.5, 0.0), (0.3, 0.2), (0.0, -0.4)])
@pytest.mark.parametrize("with_returns", [True, False])
def test_the_step_is_the_gradient_worked_out_by_hand(policy, rollout, randn, vf_coef, ent_coef, with_returns):
    advantages, returns = randn(B, T) + 1, randn(B, T) if with_returns else None
    logits, values, stats = update(policy, rollout, advantages, returns, vf_coef=vf_coef, ent_coef=ent_coef)
    expected_logits, expected_values, expected = by_hand(policy, rollout, advantages, returns, vf_coef, ent_coef)
    torch.testing.assert_close(logits, expected_logits, **EXACT)
    torch.testing.assert_close(values, expected_values, **EXACT)
    assert set(stats) == {"policy_loss", "value_loss", "entropy", "grad_norm"}
    expected["grad_norm"] = math.sqrt((expected_logits**2).sum() + (expected_values**2).sum())
    assert stats == pytest.approx(expected, abs=1e-6) and all(type(x) is float for x in stats.values())


def test_the_defaults_are_half_the_value_loss_no_entropy_and_no_limit(policy, rollout, randn):
    advantages, returns = 1e3 * randn(B, T), randn(B, T)
    logits, values, _ = update(policy, rollout, advantages, returns)
    expected_logits, expected_values, _ = by_hand(policy, rollout, advantages, returns, 0.5, 0.0)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(values, expected_values, **EXACT)


def test_without_returns_the_value_head_is_left_alone_whatever_the_optimizer(policy, rollout, randn):
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, weight_decay=0.1)
    reinforce_update(policy, optimizer, rollout, randn(B, T), randn(B, T))  # Adam now has a momentum to go on with
    logits, values = policy.logits_table.data.clone(), policy.values_table.data.clone()
    stats = reinforce_update(policy, optimizer, rollout, randn(B, T))
    assert torch.equal(policy.values_table.data, values) and not torch.equal(policy.logits_table.data, logits)
    assert stats["value_loss"] == 0


def test_advantages_are_used_as_they_are_and_carry_no_gradient(policy, rollout, randn):
    advantages = randn(B, T).requires_grad_()
    logits, *_ = update(policy, rollout, advantages)
    tripled, *_ = update(policy, rollout, 3 * advantages)
    torch.testing.assert_close(tripled, 3 * logits)
    assert advantages.grad is None
    assert update(policy, rollout, torch.ones(B, T).double())[0].abs().sum() > 0  # not centred


def test_old_gradients_are_forgotten(policy, rollout, randn):
    advantages = randn(B, T)
    expected, *_ = update(policy, rollout, advantages)
    policy.logits_table.grad = torch.full_like(policy.logits_table, 100.0)
    assert torch.equal(update(policy, rollout, advantages)[0], expected)


@pytest.mark.parametrize("limit, scaled", [(0.01, True), (1e6, False), (None, False)])
def test_a_long_gradient_is_scaled_down_after_it_was_measured(policy, rollout, randn, limit, scaled):
    advantages, returns = randn(B, T), randn(B, T)
    logits, values, stats = update(policy, rollout, advantages, returns, max_grad_norm=limit)
    expected_logits, expected_values, _ = by_hand(policy, rollout, advantages, returns, 0.5, 0.0)
    norm = math.sqrt((expected_logits**2).sum() + (expected_values**2).sum())
    assert stats["grad_norm"] == pytest.approx(norm, rel=1e-5)
    factor = limit / norm if scaled else 1
    torch.testing.assert_close(logits, factor * expected_logits, rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(values, factor * expected_values, rtol=1e-4, atol=1e-10)


def test_what_is_masked_changes_nothing(policy, rollout, randn):
    advantages, returns = randn(B, T), randn(B, T)
    dirty = [torch.where(rollout.mask > 0, x, NAN) for x in (advantages, returns)]
    clean, dirty = update(policy, rollout, advantages, returns), update(policy, rollout, *dirty)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1]) and clean[2] == dirty[2]


def test_good_actions_become_likelier_and_bad_ones_less_likely(rollout, policy):
    for sign in (1, -1):
        moved = copy.deepcopy(policy)
        first = rollout[0]
        advantages = sign * first.mask
        reinforce_update(moved, torch.optim.SGD(moved.parameters(), lr=0.01), first, advantages)
        logprobs, _ = moved.evaluate(first.inputs, first.actions)
        assert sign * ((logprobs - first.old_logprobs) * first.mask).sum() > 0


@pytest.mark.parametrize("kind", ["table", "gru", "lstm"])
def test_over_all_texts_by_their_probability_the_step_is_grad_j(mdp, kind, randn):
    """Rows weighted by N * p(text), as if each text had come that often."""
    policy = randomise(TabularPolicy(V, T) if kind == "table" else RNNPolicy(V, 2, kind).double(), randn)
    expected, before = mdp.gradient(policy), [p.data.clone() for p in policy.parameters()]
    weights = len(mdp) * mdp.probabilities(policy).detach() * mdp.returns()
    advantages = weights[:, None].expand(-1, T)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    reinforce_update(policy, optimizer, mdp.rollout(policy), advantages)
    step = torch.cat([(p.data - old).flatten() for p, old in zip(policy.parameters(), before)])
    torch.testing.assert_close(step, expected, **EXACT)


@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_the_first_step_of_ppo_is_reinforce_up_to_whitening_and_rows_over_actions(policy, rollout, randn, ent_coef):
    """PPO whitens and averages over the counted actions; REINFORCE sums over a row's actions and averages over rows."""
    advantages, returns = randn(B, T) * 3 + 1, randn(B, T)
    moved = copy.deepcopy(policy)
    cfg = PPOConfig(epochs=1, minibatches=1, max_grad_norm=1e9, ent_coef=ent_coef, vf_coef=0.5)
    ppo_stats = ppo_update(moved, torch.optim.SGD(moved.parameters(), lr=1.0), rollout, advantages, returns, cfg)
    ppo_logits, ppo_values = (a.data - b.data for a, b in zip(policy.parameters(), moved.parameters()))
    scaled = masked_whiten(advantages, rollout.mask) * B / rollout.mask.sum()
    logits, values, stats = update(policy, rollout, scaled, returns, vf_coef=0.5, ent_coef=ent_coef)
    torch.testing.assert_close(ppo_logits, logits, **EXACT)
    torch.testing.assert_close(ppo_values, values, **EXACT)
    for name in ("value_loss", "entropy", "grad_norm"):
        assert stats[name] == pytest.approx(ppo_stats[name], rel=1e-5)
    assert logits.abs().max() > 0.01


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(advantages=torch.ones(B)), rf"advantages must have the shape of mask \({B}, {T}\), got \({B},\)"),
        (dict(returns=torch.ones(B, 1)), rf"returns must have the shape of mask \({B}, {T}\), got \({B}, 1\)"),
        (dict(max_grad_norm=0), "max_grad_norm must be positive or None, got 0"),
        (dict(max_grad_norm=NAN), "max_grad_norm must be positive or None, got nan"),
    ],
)
def test_bad_input_is_named_before_anything_is_computed(rollout, changed, message):
    with pytest.raises(ValueError, match=message):
        reinforce_update(None, None, rollout, **dict(advantages=torch.ones(B, T)) | changed)
