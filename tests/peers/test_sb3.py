"""The same numbers through Stable-Baselines3: `make peers` makes an environment that has it and runs these."""

import numpy as np
import pytest
import torch

from rlcourse.control import MLPPolicy
from rlcourse.masking import masked_whiten
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae
from rlcourse.rollout import Rollout

pytestmark = pytest.mark.peers
NUM_ENVS, NUM_STEPS, GAMMA, LAM = 8, 32, 0.98, 0.8


@pytest.fixture
def sb3():
    return pytest.importorskip("stable_baselines3")


def ppo(sb3, **kwargs):
    """An SB3 PPO on CartPole whose buffer is full of its own steps, episode ends among them."""
    from stable_baselines3.common.env_util import make_vec_env

    model = sb3.PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", NUM_ENVS, seed=0), n_steps=NUM_STEPS, gamma=GAMMA, gae_lambda=LAM,
        seed=0, device="cpu", **kwargs,
    )  # fmt: skip
    _, callback = model._setup_learn(NUM_ENVS * NUM_STEPS)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, NUM_STEPS)
    model._update_current_progress_remaining(0, 1)
    return model


def rows(x):
    """SB3 stores [T, B]; ours is [B, T]."""
    return torch.as_tensor(np.asarray(x)).transpose(0, 1).contiguous()


def test_gae(sb3):
    model = ppo(sb3)
    buffer = model.rollout_buffer
    last_values = model.policy.predict_values(torch.as_tensor(model._last_obs)).detach()[:, 0]
    starts = np.concatenate([buffer.episode_starts[1:], model._last_episode_starts[None]])
    assert starts.sum() > 3  # episodes did end
    advantages, returns = gae(
        rows(buffer.rewards), rows(buffer.values), torch.ones(NUM_ENVS, NUM_STEPS), GAMMA, LAM, last_values,
        rows(starts.astype(np.float32)),
    )  # fmt: skip
    torch.testing.assert_close(advantages, rows(buffer.advantages), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns, rows(buffer.returns), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("minibatches, ent_coef", [(1, 0.0), (4, 0.01)])
def test_ppo_update(sb3, minibatches, ent_coef, monkeypatch):
    """Three epochs from the same weights, steps and shuffles end in the same weights and report the same numbers.

    Values are not clipped: theirs takes no maximum with the unclipped error, so the two differ by design.
    """
    steps = NUM_ENVS * NUM_STEPS
    model = ppo(
        sb3, batch_size=steps // minibatches, n_epochs=3, ent_coef=ent_coef,
        learning_rate=1e-2, clip_range=0.05, normalize_advantage=False,
    )  # fmt: skip
    buffer = model.rollout_buffer
    ours = MLPPolicy(4, 2)
    layers = [
        m for net in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net) for m in net[::2]
    ]
    theirs = [*layers[:2], model.policy.action_net, *layers[2:], model.policy.value_net]
    mine = [m for net in (ours.actor, ours.critic) for m in net[::2]]
    for a, b in zip(mine, theirs, strict=True):
        a.load_state_dict(b.state_dict())

    def column(x):  # every step a row, in SB3's order
        return rows(x).reshape(steps, 1, *np.asarray(x).shape[2:])

    mask = torch.ones(steps, 1)
    advantages = masked_whiten(column(buffer.advantages), mask)  # ours over the whole rollout; theirs by minibatch
    buffer.advantages = advantages.reshape(NUM_ENVS, NUM_STEPS).T.numpy().copy()
    rollout = Rollout(
        column(buffer.observations), column(buffer.actions)[..., 0].long(), mask, column(buffer.log_probs),
        column(buffer.values),
    )  # fmt: skip
    returns = column(buffer.returns)
    before = torch.cat([p.detach().flatten() for p in ours.parameters()])
    # SB3 drops the half of the squared error: its 0.5 is our 1
    cfg = PPOConfig(3, minibatches, 0.05, vf_coef=1.0, ent_coef=ent_coef, max_grad_norm=0.5)
    torch.manual_seed(1)
    stats = ppo_update(ours, torch.optim.Adam(ours.parameters(), lr=1e-2, eps=1e-5), rollout, advantages, returns, cfg)

    torch.manual_seed(1)
    monkeypatch.setattr(np.random, "permutation", lambda n: torch.randperm(n).numpy())
    model.train()
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a.weight, b.weight, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(a.bias, b.bias, atol=2e-5, rtol=1e-3)
    assert (torch.cat([p.detach().flatten() for p in ours.parameters()]) - before).abs().max() > 0.01  # and they moved
    logged = model.logger.name_to_value
    assert stats["approx_kl"] == pytest.approx(logged["train/approx_kl"], rel=1e-3, abs=1e-6)
    assert stats["clip_frac"] == pytest.approx(logged["train/clip_fraction"], rel=1e-3) and stats["clip_frac"] > 0
    assert stats["policy_loss"] == pytest.approx(logged["train/policy_gradient_loss"], rel=1e-2, abs=1e-5)
    assert stats["entropy"] == pytest.approx(-logged["train/entropy_loss"], rel=1e-4)
    assert stats["explained_variance"] == pytest.approx(logged["train/explained_variance"], abs=1e-4)
    assert 2 * stats["value_loss"] == pytest.approx(logged["train/value_loss"], rel=1e-3)
