import itertools
import math

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from rlcourse.control import EnvSampler, MLPPolicy, Steps, episode_returns
from rlcourse.masking import masked_whiten
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.reinforce import reinforce_update
from rlcourse.returns import gae

CARTPOLE = "CartPole-v1"
GAMMA = 0.9


class Walk(gymnasium.Env):
    """Ends by itself after a number of steps drawn at reset; pays the action plus a hundredth of the clock."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1, 2))
    action_space = gymnasium.spaces.Discrete(3, start=4)

    def __init__(self, shortest=2, longest=9):
        self.lengths = shortest, longest

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.clock, self.length = 0, int(self.np_random.integers(*self.lengths))
        return self._observation(), {}

    def step(self, action):
        assert action in (4, 5, 6)
        self.clock += 1
        return self._observation(), float(action) + self.clock / 100, self.clock == self.length, False, {}

    def _observation(self):
        return np.array([[self.clock, self.length]], dtype=np.float32)


class Odd(Walk):
    """One of the spaces is not what the sampler can use."""

    def __init__(self, observation_space=Walk.observation_space, action_space=Walk.action_space):
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space


for name, env, limit in [("Walk-v0", Walk, None), ("ShortWalk-v0", Walk, 4), ("Odd-v0", Odd, None)]:
    gymnasium.register(f"rlcourse-test/{name}", env, max_episode_steps=limit)
WALK, SHORT_WALK, ODD = (f"rlcourse-test/{name}-v0" for name in ("Walk", "ShortWalk", "Odd"))


class Fixed(nn.Module):
    """The same logits everywhere; V is 100 plus the sum of the observation."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def predict(self, observations):
        return self.logits.expand(*observations.shape[:-1], -1), 100 + observations.sum(-1)


def replay(env_id, seed, actions, first_action=0, **kwargs):
    """A plain loop over one environment: a list of (observation, reward, terminated, truncated, what came after)."""
    env, steps = gymnasium.make(env_id, **kwargs), []
    observation, _ = env.reset(seed=seed)
    for action in actions:
        following, reward, terminated, truncated, _ = env.step(action + first_action)
        steps.append((observation, reward, terminated, truncated, following))
        observation = env.reset()[0] if terminated or truncated else following
    return steps, observation


def joined(several):
    """Several calls' `Steps`, side by side."""
    tensors = {
        name: torch.cat([getattr(s.rollout, name) for s in several], 1) for name in ("inputs", "actions", "values")
    }
    tensors |= {name: torch.cat([getattr(s, name) for s in several], 1) for name in ("rewards", "dones")}
    return tensors, [total for s in several for total in s.episode_returns]


WORLDS = pytest.mark.parametrize(
    "env_id, first_action, kwargs",
    [
        (CARTPOLE, 0, {}),
        (CARTPOLE, 0, dict(max_episode_steps=15)),
        (WALK, 4, {}),
        (SHORT_WALK, 4, {}),
        (WALK, 4, dict(max_episode_steps=2, shortest=2, longest=4)),  # both ends at once: ended by itself
    ],
)


def make(env_id, kwargs, B=3, seed=11, sizes=(17, 1, 30)):
    torch.manual_seed(5)
    sampler = EnvSampler(env_id, B, seed, **kwargs)
    policy = MLPPolicy(sampler.obs_size, sampler.num_actions, hidden_size=8)
    generator = torch.Generator().manual_seed(3)
    return policy, [sampler.sample(policy, size, GAMMA, generator) for size in sizes]


# EnvSampler


@WORLDS
def test_steps_are_those_of_a_plain_loop_from_call_to_call(env_id, first_action, kwargs):
    policy, several = make(env_id, kwargs)
    got, totals = joined(several)
    ends, finished = set(), []
    for b in range(3):
        steps, after = replay(env_id, 11 + b, got["actions"][b].tolist(), first_action, **kwargs)
        total = 0.0
        for t, (observation, reward, terminated, truncated, following) in enumerate(steps):
            assert got["inputs"][b, t].tolist() == observation.flatten().tolist()
            assert got["dones"][b, t].item() == float(terminated or truncated)
            total += reward
            if truncated and not terminated:
                reward += GAMMA * policy.predict(torch.tensor(following.flatten()))[1].item()
            assert got["rewards"][b, t].item() == pytest.approx(reward, rel=1e-6)
            if terminated or truncated:
                finished.append((t, b, total))
                ends.add((bool(terminated), bool(truncated)))
                total = 0.0
        last = policy.predict(torch.tensor(after.flatten()))[1].item()
        assert several[-1].last_values[b].item() == pytest.approx(last, rel=1e-5)
    assert totals == pytest.approx([total for *_, total in sorted(finished)])
    expected = {CARTPOLE: {(False, True), (True, False)} if kwargs else {(True, False)}, WALK: {(True, False)}}
    expected |= {SHORT_WALK: {(False, True), (True, True), (True, False)}}
    assert ends >= ({(False, True), (True, True)} if "shortest" in kwargs else expected[env_id])


def test_what_the_policy_thought_is_recorded():
    policy, several = make(CARTPOLE, {})
    for steps in several:
        rollout = steps.rollout
        logprobs, values = policy.evaluate(rollout.inputs, rollout.actions)
        torch.testing.assert_close(rollout.old_logprobs, logprobs.detach())
        torch.testing.assert_close(rollout.values, values.detach())
        assert rollout.mask.shape == (3, len(rollout.actions[0])) and (rollout.mask == 1).all()
        assert rollout.inputs.shape == (*rollout.mask.shape, 4) and rollout.inputs.dtype == torch.float32
        assert {x.dtype for x in (steps.rewards, steps.dones, steps.last_values)} == {torch.float32}
        assert not any(x.requires_grad for x in (steps.last_values, rollout.values, rollout.old_logprobs))


def test_running_out_of_time_is_worth_what_could_have_followed_and_ending_is_worth_nothing():
    policy = Fixed(-1e9, 0.0, -1e9)
    cut = EnvSampler(SHORT_WALK, 1, seed=0, shortest=6, longest=7).sample(policy, 5, gamma=0.5)
    # actions pay 5; after 4 of 6 steps the observation is (4, 6), so V = 110
    assert cut.rewards.tolist() == [pytest.approx([5.01, 5.02, 5.03, 5.04 + 0.5 * 110, 5.01])]
    ended = EnvSampler(WALK, 1, seed=0, shortest=4, longest=5).sample(policy, 5, gamma=0.5)
    assert ended.rewards.tolist() == [pytest.approx([5.01, 5.02, 5.03, 5.04, 5.01])]
    assert cut.dones.tolist() == ended.dones.tolist() == [[0, 0, 0, 1, 0]]
    assert cut.episode_returns == ended.episode_returns == [pytest.approx(20.1)]  # as the environment paid
    both = EnvSampler(SHORT_WALK, 1, seed=0, shortest=4, longest=5).sample(policy, 5, gamma=0.5)
    assert both.rewards.tolist() == ended.rewards.tolist()  # time ran out as it ended: it ended
    assert cut.last_values.tolist() == [107] and ended.last_values.tolist() == [105]  # (1, 6) and (1, 4)


def test_gamma_is_1_unless_it_is_given():
    cut = EnvSampler(SHORT_WALK, 1, seed=0, shortest=6, longest=7).sample(Fixed(-1e9, 0.0, -1e9), 4)
    assert cut.rewards[0, 3].item() == pytest.approx(5.04 + 110)


def gae_of_episode(rewards, values, last_value, gamma, lam):
    values = [*values, last_value]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


@WORLDS
@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_gae_over_a_row_with_restarts_is_gae_over_each_episode(env_id, first_action, kwargs, lam):
    policy, (steps,) = make(env_id, kwargs, sizes=(48,))
    rollout = steps.rollout
    got, returns = gae(steps.rewards, rollout.values, rollout.mask, GAMMA, lam, steps.last_values, steps.dones)

    def value(observation):
        return policy.predict(torch.tensor(observation.flatten()))[1].item()

    for b in range(3):
        plain, _ = replay(env_id, 11 + b, rollout.actions[b].tolist(), first_action, **kwargs)
        expected, rewards, values = [], [], []
        for t, (observation, reward, terminated, truncated, following) in enumerate(plain):
            rewards, values = [*rewards, reward], [*values, value(observation)]
            if terminated or truncated or t == len(plain) - 1:
                last = 0.0 if terminated else value(following)
                expected += gae_of_episode(rewards, values, last, GAMMA, lam)
                rewards, values = [], []
        torch.testing.assert_close(got[b].tolist(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(returns, got + rollout.values)


def test_actions_are_drawn_as_often_as_the_policy_says(generator):
    count, p = 6000, torch.tensor([0.1, 0.6, 0.3])
    steps = EnvSampler(WALK, 20, seed=0).sample(Fixed(*p.log().tolist()), count // 20, generator=generator)
    share = torch.bincount(steps.rollout.actions.flatten(), minlength=3) / count
    assert ((share - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all()  # four standard errors
    torch.testing.assert_close(steps.rollout.old_logprobs.exp(), p[steps.rollout.actions])


def test_a_seed_gives_the_same_steps_again():
    def steps(seed, draws):
        torch.manual_seed(0)
        sampler = EnvSampler(WALK, 2, seed)
        sampled = sampler.sample(MLPPolicy(2, 3), 20, generator=torch.Generator().manual_seed(draws))
        return sampled.rollout.inputs.tolist(), sampled.rollout.actions.tolist()

    assert steps(1, 2) == steps(1, 2)
    assert steps(1, 2)[1] != steps(1, 3)[1] and steps(1, 2)[0] != steps(7, 2)[0]


def test_copies_of_an_environment_differ():
    observations = EnvSampler(CARTPOLE, 3, seed=0).sample(MLPPolicy(4, 2), 1).rollout.inputs
    assert len({tuple(row) for row in observations[:, 0].tolist()}) == 3


def test_the_sampler_knows_the_sizes_and_what_runs_feeds_ppo():
    sampler = EnvSampler(WALK, 4, seed=0)
    assert (sampler.obs_size, sampler.num_actions) == (2, 3)
    policy = MLPPolicy(2, 3)
    steps = sampler.sample(policy, 8)
    assert isinstance(steps, Steps) and len(steps.rollout[:2]) == 2
    targets = gae(steps.rewards, steps.rollout.values, steps.rollout.mask, 1.0, 0.9, steps.last_values, steps.dones)
    optimizer = torch.optim.Adam(policy.parameters())
    assert ppo_update(policy, optimizer, steps.rollout, *targets, PPOConfig())["first_ratio"] == pytest.approx(
        1, abs=1e-5
    )


BOX, DISCRETE = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)


@pytest.mark.parametrize(
    "spaces",
    [dict(action_space=BOX), dict(observation_space=DISCRETE), dict(action_space=gymnasium.spaces.MultiBinary(2))],
)
def test_spaces_that_it_cannot_use_are_named(spaces):
    with pytest.raises(ValueError, match="Odd-v0 must have a Box of observations and Discrete actions, got"):
        EnvSampler(ODD, 2, seed=0, **spaces)


def test_continuous_actions_are_named():
    with pytest.raises(ValueError, match=r"Pendulum-v1 must have .* Discrete actions, got .*Box"):
        EnvSampler("Pendulum-v1", 2, seed=0)


def test_numbers_below_1_are_named():
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        EnvSampler(CARTPOLE, 0, seed=0)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        EnvSampler(CARTPOLE, 1, seed=0).sample(MLPPolicy(4, 2), 0)


# episode_returns


@pytest.mark.parametrize("env_id, limit", [(WALK, None), (SHORT_WALK, 4)])
def test_episode_returns_are_those_of_first_episodes_without_what_could_have_followed(env_id, limit):
    expected = []
    for seed in range(20, 26):
        env = gymnasium.make(env_id)
        length = int(env.reset(seed=seed)[0][0, 1])
        length = length if limit is None else min(length, limit)
        expected.append(sum(6 + clock / 100 for clock in range(1, length + 1)))
    assert len(set(expected)) > 1
    policy = Fixed(-1e9, -1e9, 0.0)  # always the last action; V is large
    assert episode_returns(policy, env_id, 6, seed=20) == pytest.approx(expected)


def test_episode_returns_sample_the_actions_and_come_again():
    policy = Fixed(0.0, 0.0, 0.0)
    first = episode_returns(policy, WALK, 5, seed=3)
    assert first == episode_returns(policy, WALK, 5, seed=3) != episode_returns(policy, WALK, 5, seed=4)
    assert len(set(first)) > 1 and all(type(x) is float for x in first)


# MLPPolicy


def test_the_mlp_is_two_tanh_networks():
    torch.manual_seed(0)
    policy = MLPPolicy(3, 4, hidden_size=5).double()
    observations, actions = torch.randn(2, 6, 3).double(), torch.randint(0, 4, (2, 6))

    def network(layers, x):
        for k in (0, 2):
            x = (layers[k].weight @ x + layers[k].bias).tanh()
        return (layers[4].weight @ x + layers[4].bias).tolist()

    logprobs, values, entropies = policy.evaluate(observations, actions, with_entropy=True)
    logits, predicted = policy.predict(observations)
    for b, t in itertools.product(range(2), range(6)):
        scores = network(policy.actor, observations[b, t])
        normaliser = math.log(sum(math.exp(x) for x in scores))
        p = [math.exp(x - normaliser) for x in scores]
        torch.testing.assert_close(logits[b, t].tolist(), scores)
        assert logprobs[b, t].item() == pytest.approx(math.log(p[actions[b, t]]), abs=1e-12)
        assert values[b, t].item() == pytest.approx(network(policy.critic, observations[b, t])[0], abs=1e-12)
        assert entropies[b, t].item() == pytest.approx(-sum(x * math.log(x) for x in p), abs=1e-12)
    assert torch.equal(predicted, values) and len(policy.evaluate(observations, actions)) == 2


def test_the_first_policy_is_nearly_uniform_and_its_weights_orthogonal():
    torch.manual_seed(0)
    policy = MLPPolicy(4, 2)
    logits, _ = policy.predict(torch.randn(100, 4))
    assert (logits.softmax(-1) - 0.5).abs().max() < 0.02
    for network, gain in ((policy.actor, 0.01), (policy.critic, 1.0)):
        assert [layer.out_features for layer in network[::2]] == [64, 64, 1 if gain == 1 else 2]
        for layer, scale in zip(network[::2], (2**0.5, 2**0.5, gain)):
            wide = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
            torch.testing.assert_close(wide @ wide.T, scale**2 * torch.eye(len(wide)), rtol=0, atol=1e-5 * scale**2)
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("method", ["reinforce", "ppo"])
def test_the_updates_written_for_texts_balance_a_pole(method):
    """Over seeds 0 to 7 the last twenty episodes were 4 to 19 times as long as the first twenty."""
    torch.manual_seed(1)
    sampler = EnvSampler("CartPole-v1", num_envs=8, seed=1)
    policy, episodes = MLPPolicy(sampler.obs_size, sampler.num_actions), []
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3 if method == "reinforce" else 1e-3)
    for _ in range(100 if method == "reinforce" else 80):
        steps = sampler.sample(policy, 64 if method == "reinforce" else 32, 0.98)
        rollout = steps.rollout
        advantages, returns = gae(
            steps.rewards, rollout.values, rollout.mask, 0.98, 0.9, steps.last_values, steps.dones
        )
        if method == "reinforce":  # its loss is a sum over a row's actions: a row has 64 here
            advantages = masked_whiten(advantages, rollout.mask) / 64
            reinforce_update(policy, optimizer, rollout, advantages, returns, max_grad_norm=0.5)
        else:
            ppo_update(policy, optimizer, rollout, advantages, returns, PPOConfig(epochs=10, minibatches=1))
        episodes += steps.episode_returns
    assert sum(episodes[-20:]) > 3 * sum(episodes[:20])
