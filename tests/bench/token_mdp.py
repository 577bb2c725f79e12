"""The study behind notebook 05: `python tests/bench/token_mdp.py` writes notebooks/05_token_mdp.csv.

Ten seeds of the notebook's own loop on the token MDP with a KL price, and ten seeds each of six variants that differ
from it in the settings named in `VARIANTS`. All see the same number of texts. Every second iteration is
kept, measured exactly: the share of the gap J_beta(pi*) - J_beta(pi_ref) that is closed, and KL(pi || pi*) in nats.
"""

import time

import torch
from study import write

from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.plotting import progress
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards

SETTINGS = dict(iterations=60, batch=256, lr=0.05, kl_coef=0.3, gamma=1.0, lam=0.95)
NO_CLIP = 1e9
VARIANTS = {
    "ppo": dict(),
    "constant rate": dict(falling=False),
    "one step": dict(epochs=1, minibatches=1),
    "one step, rate x 4": dict(epochs=1, minibatches=1, lr=4 * SETTINGS["lr"]),
    "10 epochs": dict(epochs=10),
    "10 epochs, no clip": dict(epochs=10, clip_eps=NO_CLIP),
    "10 epochs, no clip, KL stop": dict(epochs=10, clip_eps=NO_CLIP, target_kl=0.02),
}
SEEDS, EVERY = 10, 2
REFERENCE = [[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.3, 0.4, 0.3], [1 / 3, 1 / 3, 1 / 3]]  # first token; after a, b, end


def pairs(actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N, T]: 1 for every b that directly follows an a."""
    hit = torch.zeros_like(mask)
    hit[:, 1:] = ((actions[:, :-1] == 0) & (actions[:, 1:] == 1)) * mask[:, 1:]
    return hit


def train(seed: int, lr: float = SETTINGS["lr"], falling: bool = True, **config) -> tuple[list[dict], float]:
    """One run: one dict of exact measurements per kept iteration, and its seconds."""
    torch.manual_seed(seed)
    mdp, s, cfg = TokenMDP(3, 4, pairs, eos=2), SETTINGS, PPOConfig(**dict(epochs=4, minibatches=4) | config)
    ref_policy, policy = TabularPolicy(3, 4, memory=1), TabularPolicy(3, 4)
    with torch.no_grad():
        ref_policy.logits_table.copy_(torch.tensor(REFERENCE, dtype=torch.float64).log())
        policy.logits_table.copy_(ref_policy.logits_table[ref_policy.rows])
    best = mdp.optimal_policy(ref_policy, s["kl_coef"])
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0 if falling else 1.0, s["iterations"])

    @torch.no_grad()
    def measure() -> dict:
        low, now, high = (mdp.regularised_return(p, ref_policy, s["kl_coef"]) for p in (ref_policy, policy, best))
        return dict(gap_closed=((now - low) / (high - low)).item(), kl=mdp.kl(policy, best).item())

    history, start = [dict(iteration=0) | measure()], time.perf_counter()
    for step in range(1, s["iterations"] + 1):
        rollout, rewards = mdp.sample(policy, s["batch"])
        with torch.no_grad():
            ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        shaped = kl_shaped_rewards(rewards, rollout.old_logprobs, ref_logprobs, rollout.mask, s["kl_coef"])
        advantages, returns = gae(shaped, rollout.values, rollout.mask, s["gamma"], s["lam"])
        ppo_update(policy, optimizer, rollout, advantages, returns, cfg)
        schedule.step()
        if step % EVERY == 0:
            history.append(dict(iteration=step) | measure())
    return history, time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    rows, about = [], f"{SETTINGS}, {PPOConfig(epochs=4)}, variants {VARIANTS}"
    for variant, settings in VARIANTS.items():
        for seed in progress(range(SEEDS), desc=variant):
            history, seconds = train(seed, **settings)
            rows += [dict(variant=variant, seed=seed) | row for row in history]
            print(variant, seed, {k: round(v, 4) for k, v in history[-1].items()}, f"{seconds:.1f} s", flush=True)
            write("05_token_mdp", rows, __file__, about)  # after every run, so that an interruption loses one


if __name__ == "__main__":
    main()
