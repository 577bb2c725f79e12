import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.text_env import TextEnv, state_number

A, B, END = 0, 1, 2


def pairs(actions, mask):
    """[N, T]: 1 for every b that directly follows an a."""
    hit = torch.zeros_like(mask)
    hit[:, 1:] = ((actions[:, :-1] == A) & (actions[:, 1:] == B)) * mask[:, 1:]
    return hit


def total(actions, mask):
    return pairs(actions, mask).sum(1)


def make(reward=pairs, **kwargs):
    return gymnasium.make("rlcourse/Text-v0", vocab="ab.", horizon=4, reward=reward, eos=END, **kwargs)


def write(env, tokens, seed=0):
    """The rewards of the tokens, one by one, until the text is over."""
    env.reset(seed=seed)
    rewards = []
    for token in tokens:
        _, reward, terminated, truncated, _ = env.step(token)
        rewards.append(reward)
        if terminated or truncated:
            break
    return rewards


@pytest.mark.parametrize("options", [{}, dict(reward=total), dict(noise=0.5), dict(render_mode="ansi")])
def test_gymnasiums_own_check_finds_nothing(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(**options).unwrapped)


@pytest.mark.parametrize("reward", [pairs, total])
def test_every_text_earns_what_the_listed_world_says(reward):
    mdp, env = TokenMDP(3, 4, reward, eos=END), make(reward)
    for actions, mask, rewards in zip(mdp.actions.tolist(), mdp.mask, mdp.rewards.tolist()):
        length = int(mask.sum())
        assert write(env, actions) == rewards[:length]


def test_the_mean_return_of_random_texts_is_the_exact_one():
    env, rng = make(), np.random.default_rng(0)
    returns = [sum(write(env, rng.integers(0, 3, 4))) for _ in range(3000)]
    exact = TokenMDP(3, 4, pairs, eos=END).expected_return(TabularPolicy(3, 4)).item()
    assert np.mean(returns) == pytest.approx(exact, abs=4 * np.std(returns) / 3000**0.5)


def test_observations_are_the_tokens_so_far_and_nobody_can_write_into_them():
    env = make()
    first, info = env.reset(seed=0)
    assert first.tolist() == [3, 3, 3, 3] and info == {} and env.observation_space.contains(first)
    second = env.step(B)[0]
    second[0] = A
    assert env.step(A)[0].tolist() == [B, A, 3, 3] and first.tolist() == [3, 3, 3, 3]


def test_states_are_numbered_as_in_the_token_mdp():
    mdp = TokenMDP(3, 4, pairs, eos=END)
    for actions, states in zip(mdp.actions.tolist(), mdp.states.tolist()):
        for t in range(4):
            assert state_number(np.array(actions[:t] + [3] * (4 - t)), 3) == states[t]
    assert state_number(np.array([3, 3]), 3) == 0
    with pytest.raises(ValueError, match="observation"):
        state_number(np.array([4, 3]), 3)


@pytest.mark.parametrize("tokens", [[END], [A, END], [A, B, A, B], [A, B, A, END]])
def test_a_text_terminates_at_eos_or_with_its_last_place_and_only_there(tokens):
    env = make()
    env.reset(seed=0)
    flags = [env.step(token)[2:4] for token in tokens]
    assert flags == [(False, False)] * (len(tokens) - 1) + [(True, False)]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(A)


def test_without_eos_only_the_horizon_ends_a_text():
    env = TextEnv("ab.", 3, pairs)
    env.reset()
    assert [env.step(END)[2] for _ in range(3)] == [False, False, True]


def test_a_limit_from_outside_truncates():
    env = make(max_episode_steps=2)
    env.reset(seed=0)
    assert env.step(A)[2:4] == (False, False) and env.step(B)[2:4] == (False, True)


def test_noise_has_the_stated_size_mean_zero_and_follows_the_seed():
    env = make(noise=0.5)
    assert write(env, [A, B, A, B], seed=3) == write(env, [A, B, A, B], seed=3) != write(env, [A, B, A, B], seed=4)
    env.reset(seed=0)
    noise = []
    for _ in range(1000):
        env.reset()
        noise += [env.step(token)[1] - paid for token, paid in zip([A, B, A, B], [0, 1, 0, 1])]
    assert np.mean(noise) == pytest.approx(0, abs=4 * 0.5 / 4000**0.5)
    assert np.std(noise) == pytest.approx(0.5, rel=0.05) and abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.06


def test_rendering():
    env = make(render_mode="ansi")
    env.reset(seed=0)
    texts = [env.render()] + [(env.step(token), env.render())[1] for token in (A, B, END)]
    assert texts == ["____", "a___", "ab__", "ab."]
    words = TextEnv(["yes", "no"], 2, lambda a, m: m.sum(1), render_mode="ansi")
    words.reset()
    words.step(1)
    assert words.render() == "no _"
    silent = TextEnv("ab", 2, lambda a, m: m.sum(1))
    silent.reset()
    assert silent.render() is None


def test_a_reward_never_sees_what_is_not_written():
    seen = []

    def spy(actions, mask):
        seen.append((actions.tolist(), mask.tolist()))
        return mask.sum(1)

    env = TextEnv("ab.", 3, spy, eos=END)
    env.reset()
    assert [env.step(token)[1] for token in (B, A, END)] == [0.0, 0.0, 3.0]
    assert seen[1] == ([[B, A, END]], [[1.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(vocab="a"), "vocab"),
        (dict(horizon=0), "horizon"),
        (dict(eos=3), "eos"),
        (dict(noise=-1.0), "noise"),
        (dict(render_mode="human"), "render_mode"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TextEnv(**(dict(vocab="ab.", horizon=4, reward=pairs) | change))


def test_bad_actions_and_rewards_are_named():
    env = TextEnv("ab", 2, lambda actions, mask: torch.zeros(3))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match="0 to 1, got 2"):
        env.step(2)
    with pytest.raises(ValueError, match=r"reward must return \[1\] or \[1, 2\].*\(3,\)"):
        env.step(0)
    env = TextEnv("ab", 2, lambda actions, mask: mask / 0 * 0)
    env.reset()
    with pytest.raises(ValueError, match="finite"):
        env.step(0)
