"""Gymnasium environments as rollouts [B, T], so that the updates written for texts train them too."""

from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from rlcourse.rollout import Rollout


class MLPPolicy(nn.Module):
    """Two tanh networks, one for the logits of a finite set of actions and one for the value.

    inputs of `evaluate`: observations [B, T, obs_size]. Orthogonal weights at the start, small ones on the logits, so
    that the first policy is nearly uniform (as in most PPO code; Andrychowicz et al. 2021).
    """

    def __init__(self, obs_size: int, num_actions: int, hidden_size: int = 64):
        super().__init__()
        self.actor = _mlp(obs_size, hidden_size, num_actions, last_gain=0.01)
        self.critic = _mlp(obs_size, hidden_size, 1, last_gain=1.0)

    def predict(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [..., A] and values [...] for observations [..., obs_size]."""
        return self.actor(observations), self.critic(observations)[..., 0]

    def evaluate(self, inputs: Tensor, actions: Tensor, with_entropy: bool = False) -> tuple[Tensor, ...]:
        """actions: [B, T] -> logprobs, values and, if asked for, entropies: [B, T]."""
        logits, values = self.predict(inputs)
        log_pi = logits.log_softmax(-1)
        logprobs = log_pi.gather(-1, actions[..., None])[..., 0]
        return (logprobs, values, -(log_pi.exp() * log_pi).sum(-1)) if with_entropy else (logprobs, values)


@dataclass(frozen=True)
class Steps:
    """What `EnvSampler.sample` returns: a rollout whose inputs are observations, and what `gae` needs beside it.

    rewards, dones: [B, T], a 1 in `dones` where an action ended an episode. last_values: [B], V of the observation
    after the last action. episode_returns: the undiscounted total, as the environment paid it, of every episode that
    ended in these steps.
    """

    rollout: Rollout
    rewards: Tensor
    dones: Tensor
    last_values: Tensor
    episode_returns: list[float]


class EnvSampler:
    """Copies of one Gymnasium environment that run on from call to call, each restarting when its episode ends.

    It runs on the CPU, where the environments are; so must the policy.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, **kwargs):
        """kwargs go to the environment, e.g. `max_episode_steps`."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.envs = gymnasium.make_vec(
            env_id, num_envs, "sync", vector_kwargs=dict(autoreset_mode=AutoresetMode.SAME_STEP), **kwargs
        )
        spaces = self.envs.single_observation_space, self.envs.single_action_space
        if not (isinstance(spaces[0], gymnasium.spaces.Box) and isinstance(spaces[1], gymnasium.spaces.Discrete)):
            raise ValueError(f"{env_id} must have a Box of observations and Discrete actions, got {spaces}")
        self.obs_size, self.num_actions = int(np.prod(spaces[0].shape)), int(spaces[1].n)
        self._first_action = int(spaces[1].start)  # action 0 of the policy
        self._observations = self._tensor(self.envs.reset(seed=seed)[0])
        self._totals = np.zeros(num_envs)

    @torch.no_grad()
    def sample(self, policy, num_steps: int, gamma: float = 1.0, generator: torch.Generator | None = None) -> Steps:
        """Let the policy act for `num_steps` in every copy.

        An episode that is cut off by a time limit could have gone on: gamma * V(where it was cut) is added to its last
        reward, so gamma must be the one that `gae` gets. One that ended by itself is worth nothing more.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        observations, columns, finished = self._observations, [], []
        for _ in range(num_steps):
            logits, values = policy.predict(observations)
            log_pi = logits.log_softmax(-1)
            action = torch.multinomial(log_pi.exp(), 1, generator=generator)  # [B, 1]
            following, reward, terminated, truncated, info = self.envs.step(action[:, 0].numpy() + self._first_action)
            self._totals += reward
            done = terminated | truncated
            if done.any():
                finished += self._totals[done].tolist()
                self._totals[done] = 0
            if cut_off := np.flatnonzero(truncated & ~terminated).tolist():
                ends = self._tensor(np.stack([info["final_obs"][i] for i in cut_off]))
                reward[cut_off] += gamma * policy.predict(ends)[1].numpy()
            columns.append((observations, action[:, 0], log_pi.gather(-1, action)[:, 0], values,
                            torch.from_numpy(reward).float(), torch.from_numpy(done).float()))  # fmt: skip
            observations = self._tensor(following)
        self._observations = observations
        inputs, actions, logprobs, values, rewards, dones = (torch.stack(c, dim=1) for c in zip(*columns))
        rollout = Rollout(inputs, actions, torch.ones_like(rewards), logprobs, values)
        return Steps(rollout, rewards, dones, policy.predict(observations)[1], finished)

    def _tensor(self, observations: np.ndarray) -> Tensor:
        return torch.tensor(observations, dtype=torch.float32).flatten(1)


def episode_returns(policy, env_id: str, episodes: int, seed: int) -> list[float]:
    """Undiscounted returns of one episode in each of `episodes` fresh environments, actions sampled."""
    sampler = EnvSampler(env_id, episodes, seed)
    generator = torch.Generator().manual_seed(seed)
    totals, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        steps = sampler.sample(policy, 1, gamma=0.0, generator=generator)  # 0: nothing added where time ran out
        totals += steps.rewards[:, 0].numpy() * running
        running &= steps.dones[:, 0].numpy() == 0
    return totals.tolist()


def _mlp(inputs: int, hidden: int, outputs: int, last_gain: float) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, last_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
