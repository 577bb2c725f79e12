"""The study behind notebook 05's CartPole: `python tests/bench/cartpole.py`.

Writes notebooks/05_cartpole.csv and 05_cartpole_curves.csv: ten seeds of `ppo_update`, 100,000 steps each. Where
Stable-Baselines3 can be imported (`make peers` makes such an environment, .venv-peers), its PPO runs with the same
settings, seed by seed in turn with ours.
"""

import importlib.util
import time
from dataclasses import replace

import torch
from study import write

from rlcourse.control import EnvSampler, MLPPolicy, episode_returns
from rlcourse.plotting import progress
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae

ENV, SEEDS, EPISODES, ROW = "CartPole-v1", 10, 100, 8  # a row of the curves is made of 8 iterations
SETTINGS = dict(total_steps=100_000, num_envs=8, num_steps=32, gamma=0.98, lam=0.8, lr=1e-3)
CFG = PPOConfig(epochs=20, minibatches=1, clip_eps=0.2, vf_coef=1.0, max_grad_norm=0.5)  # the peer: 0.5 * squared error


def train_ours(seed: int):
    """The policy after all steps, and (env_steps, episode returns) of each iteration."""
    torch.manual_seed(seed)
    s = SETTINGS
    sampler = EnvSampler(ENV, s["num_envs"], seed)
    policy = MLPPolicy(sampler.obs_size, sampler.num_actions)
    optimizer = torch.optim.Adam(policy.parameters(), lr=s["lr"], eps=1e-5, fused=True)
    per_iteration = s["num_envs"] * s["num_steps"]
    iterations = s["total_steps"] // per_iteration
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=iterations)
    curve = []
    for i in progress(range(iterations), desc=f"ours {seed}"):
        steps = sampler.sample(policy, s["num_steps"], s["gamma"])
        rollout = steps.rollout
        advantages, returns = gae(
            steps.rewards, rollout.values, rollout.mask, s["gamma"], s["lam"], steps.last_values, steps.dones
        )
        cfg = replace(CFG, clip_eps=CFG.clip_eps * (1 - i / iterations))
        ppo_update(policy, optimizer, rollout, advantages, returns, cfg)
        schedule.step()
        curve.append(((i + 1) * per_iteration, steps.episode_returns))
    return policy, curve


def train_sb3(seed: int):
    """The same with Stable-Baselines3."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    s = SETTINGS
    per_iteration = s["num_envs"] * s["num_steps"]

    class Record(BaseCallback):
        curve: list = []  # noqa: RUF012

        def _on_rollout_start(self):
            self.curve.append((self.num_timesteps + per_iteration, []))

        def _on_step(self):
            self.curve[-1][1].extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
            return True

    model = PPO(
        "MlpPolicy", make_vec_env(ENV, s["num_envs"], seed=seed), n_steps=s["num_steps"], batch_size=per_iteration,
        n_epochs=CFG.epochs, gamma=s["gamma"], gae_lambda=s["lam"], learning_rate=lambda left: s["lr"] * left,
        clip_range=lambda left: CFG.clip_eps * left, max_grad_norm=CFG.max_grad_norm, seed=seed, device="cpu",
    )  # fmt: skip
    record = Record()
    record.curve = []
    model.learn(s["total_steps"] // per_iteration * per_iteration, callback=record)

    class Policy:
        @staticmethod
        def predict(observations):
            distribution = model.policy.get_distribution(observations).distribution
            return distribution.logits, model.policy.predict_values(observations)[..., 0]

    return Policy(), record.curve


def main() -> None:
    torch.set_num_threads(1)  # networks this small are fastest so, ours and theirs
    peer = importlib.util.find_spec("stable_baselines3") is not None
    runs, curves = [], []
    for seed in range(SEEDS):
        for who, train in {"ours": train_ours, **({"sb3": train_sb3} if peer else {})}.items():
            start = time.perf_counter()
            policy, curve = train(seed)
            seconds = time.perf_counter() - start
            returns = episode_returns(policy, ENV, EPISODES, seed=10_000 + seed)
            runs.append(dict(
                who=who, seed=seed, steps_per_second=round(curve[-1][0] / seconds), seconds=seconds,
                mean_return=sum(returns) / EPISODES, min_return=min(returns),
            ))  # fmt: skip
            for i in range(ROW - 1, len(curve), ROW):
                ended = [x for _, returns in curve[i - ROW + 1 : i + 1] for x in returns]
                if ended:
                    curves.append(
                        dict(who=who, seed=seed, env_steps=curve[i][0], episode_return=sum(ended) / len(ended))
                    )
            print(runs[-1], flush=True)
            about = f"{ENV}, {SETTINGS}, {CFG}, lr and clip_eps fall in a straight line to 0"
            for name, rows in {"05_cartpole": runs, "05_cartpole_curves": curves}.items():
                write(name, rows, __file__, about, ("gymnasium", *["stable_baselines3"] * peer))


if __name__ == "__main__":
    main()
