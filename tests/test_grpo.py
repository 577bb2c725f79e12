import copy
from dataclasses import replace

import pytest
import torch

from rlcourse.baselines import flat_gradient, group_advantages
from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.grpo import grpo_update
from rlcourse.ppo import PPOConfig

ONE_STEP = PPOConfig(epochs=1, minibatches=1, max_grad_norm=1e9)


@pytest.fixture
def world(randn):
    """A policy, and a rollout of eight of its texts, of unequal lengths, with a reference's log-probabilities."""
    torch.manual_seed(0)
    mdp, policy, ref_policy = (
        TokenMDP(3, 3, lambda a, m: (a * m).sum(1), eos=2),
        TabularPolicy(3, 3),
        TabularPolicy(3, 3),
    )
    for p in (policy, ref_policy):
        p.logits_table.data = randn(*p.logits_table.shape)
    rollout, rewards = mdp.sample(policy, 8)
    with torch.no_grad():
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
    assert len(set(rollout.mask.sum(1).tolist())) > 1
    return policy, replace(rollout, ref_logprobs=ref_logprobs), group_advantages(rewards.sum(1), 4, "std")


def test_the_first_step_goes_along_the_gradient_worked_out_by_hand(world):
    policy, rollout, advantages = world
    logprobs, _ = policy.evaluate(rollout.inputs, rollout.actions)
    total = 0
    for b, length in enumerate(rollout.mask.sum(1).long().tolist()):
        for t in range(length):
            pull = advantages[b].item() - 0.3 * (1 - (rollout.ref_logprobs[b, t] - logprobs[b, t]).exp().item())
            total = total + logprobs[b, t] * pull / length / 8  # grad k3 = (1 - ref / pi) * grad log pi
    expected = copy.deepcopy(policy)
    gradient = flat_gradient(total, policy)[: policy.logits_table.numel()].reshape(policy.logits_table.shape)
    expected.logits_table.data += 0.5 * gradient
    stats = grpo_update(policy, torch.optim.SGD(policy.parameters(), lr=0.5), rollout, advantages, ONE_STEP, 0.3)
    torch.testing.assert_close(policy.logits_table.data, expected.logits_table.data, rtol=0, atol=1e-10)
    assert stats["clip_frac"] == 0 and stats["grad_norm"] == pytest.approx(gradient.norm().item(), abs=1e-10)


def test_every_row_is_used_once_an_epoch_with_its_own_advantage(world):
    policy, rollout, advantages = world
    seen = []
    evaluate = policy.evaluate
    policy.evaluate = lambda inputs, actions: seen.append(actions) or evaluate(inputs, actions)
    grpo_update(policy, torch.optim.SGD(policy.parameters(), lr=0), rollout, advantages, PPOConfig(3, 4), 0.1)
    assert [len(x) for x in seen] == [2] * 12
    for epoch in range(3):
        rows = sorted(torch.cat(seen[4 * epoch : 4 * epoch + 4]).tolist())
        assert rows == sorted(rollout.actions.tolist())


def test_what_scores_above_its_group_becomes_likelier(world):
    policy, rollout, advantages = world

    def gain():
        with torch.no_grad():
            logprobs = (policy.evaluate(rollout.inputs, rollout.actions)[0] * rollout.mask).sum(1)
        return (logprobs * advantages).sum().item()

    before = gain()
    grpo_update(policy, torch.optim.SGD(policy.parameters(), lr=0.1), rollout, advantages, PPOConfig(2, 2), 0.0)
    assert gain() > before


def test_without_a_price_no_reference_is_needed(world):
    policy, rollout, advantages = world
    bare, optimizer = replace(rollout, ref_logprobs=None), torch.optim.SGD(policy.parameters(), lr=0.1)
    grpo_update(policy, optimizer, bare, advantages, ONE_STEP, 0.0)
    with pytest.raises(ValueError, match="rollout has no ref_logprobs"):
        grpo_update(policy, optimizer, bare, advantages, ONE_STEP, 0.1)


def test_bad_input_is_named(world):
    policy, rollout, advantages = world
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"advantages must be \[B\] = \(8,\), one a response, got \(8, 3\)"):
        grpo_update(policy, optimizer, rollout, advantages[:, None] * rollout.mask, ONE_STEP, 0.1)
    with pytest.raises(ValueError, match="minibatches is 9 but the rollout has only 8 rows"):
        grpo_update(policy, optimizer, rollout, advantages, PPOConfig(1, 9), 0.1)
