"""The study behind notebook 03: `python tests/bench/baselines.py` writes notebooks/03_baselines.csv.

Ten seeds of REINFORCE on the token MDP of the notebook for each thing that one may subtract, on the task as it is and
on the same task with a bonus that every text gets. Nothing is chosen per seed, and every run is in the file. `return`
is the exact J of the task without the bonus, `variance` the exact total variance of one text's gradient estimate, with
the baseline as it is at that step; the batch's own baselines have none that does not depend on the batch.
"""

import math

import torch
from study import write

from rlcourse import baselines, envs
from rlcourse.plotting import progress
from rlcourse.reinforce import reinforce_update
from rlcourse.returns import discounted_returns

SETTINGS = dict(steps=100, batch=8, lr=2.0, value_lr=3.0, seeds=10, bonuses=(0, 3), every=5)
VARIANTS = ("total return", "reward-to-go", "batch mean", "leave-one-out", "learned value", "exact V", "optimal")


def pairs(actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N, T]: 1 for every b (token 1) that directly follows an a (token 0)."""
    hit = torch.zeros_like(mask)
    hit[:, 1:] = ((actions[:, :-1] == 0) & (actions[:, 1:] == 1)) * mask[:, 1:]
    return hit


def task(bonus: float) -> envs.TokenMDP:
    """The token MDP of the notebook; every text gets the bonus at its last token."""

    def reward(actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        last = mask - torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        return pairs(actions, mask) + bonus * last

    return envs.TokenMDP(3, 4, reward, eos=2)


def listed_baseline(variant: str, mdp: envs.TokenMDP, policy) -> torch.Tensor | None:
    """The baseline in every state of every listed text [N, T]; None for those that need a batch."""
    if variant in ("total return", "reward-to-go"):
        return torch.zeros_like(mdp.mask)
    if variant == "learned value":
        return mdp.rollout(policy).values
    if variant == "exact V":
        return mdp.values(policy)[mdp.states] * mdp.mask
    if variant == "optimal":  # among all functions of the state
        scores = baselines.score_functions(policy, mdp.inputs, mdp.actions) * mdp.mask[..., None]
        features = torch.nn.functional.one_hot(mdp.states, mdp.num_states) * mdp.mask[..., None]
        targets, p = discounted_returns(mdp.rewards, mdp.mask), mdp.probabilities(policy).detach()
        return features @ baselines.optimal_baseline(scores, targets, features, p)
    return None


def table_of(mdp: envs.TokenMDP, listed: torch.Tensor) -> torch.Tensor:
    """[N, T] numbers that depend on the state only -> [S]."""
    table = listed.new_zeros(mdp.num_states)
    table[mdp.states[mdp.mask > 0]] = listed[mdp.mask > 0]
    return table


def train(seed: int, variant: str, bonus: float) -> list[dict]:
    """One run: a row for the policy before each `every`-th step and for the final one."""
    s, mdp = SETTINGS, task(bonus)
    policy, generator = envs.TabularPolicy(3, 4), torch.Generator().manual_seed(seed)
    groups = [dict(params=[policy.logits_table], lr=s["lr"]), dict(params=[policy.values_table], lr=s["value_lr"])]
    optimizer, history = torch.optim.SGD(groups), []
    for step in range(s["steps"] + 1):
        listed = listed_baseline(variant, mdp, policy)
        if step % s["every"] == 0:
            history.append(dict(step=step, **measure(mdp, policy, variant, listed, bonus)))
        rollout, rewards = mdp.sample(policy, s["batch"], generator)
        mask, returns = rollout.mask, discounted_returns(rewards, rollout.mask)
        if variant == "total return":
            advantages = returns[:, :1] * mask
        elif variant == "batch mean":
            advantages = returns - baselines.batch_mean_baseline(returns, mask)
        elif variant == "leave-one-out":
            advantages = returns - baselines.leave_one_out_baseline(returns, mask)
        else:
            states = envs._states(rollout.inputs, rollout.actions, mdp.vocab_size)
            advantages = (returns - table_of(mdp, listed)[states]) * mask
        learned = returns if variant == "learned value" else None
        reinforce_update(policy, optimizer, rollout, advantages, learned, vf_coef=1.0)
    return history


def measure(mdp: envs.TokenMDP, policy, variant: str, listed: torch.Tensor | None, bonus: float) -> dict[str, float]:
    """Exact J without the bonus, exact variance of one text's estimate."""
    result = {"return": mdp.expected_return(policy).item() - bonus, "variance": math.nan}
    if listed is not None:
        returns = discounted_returns(mdp.rewards, mdp.mask)
        weights = (returns[:, :1] if variant == "total return" else returns - listed) * mdp.mask
        scores = baselines.score_functions(policy, mdp.inputs, mdp.actions)
        result["variance"] = mdp.moments(policy, torch.einsum("nt,ntd->nd", weights, scores))[1].item()
    return result


def main() -> None:
    runs = [(b, v, i) for b in SETTINGS["bonuses"] for v in VARIANTS for i in range(SETTINGS["seeds"])]
    rows = [
        dict(bonus=bonus, variant=variant, seed=seed) | row
        for bonus, variant, seed in progress(runs)
        for row in train(seed, variant, bonus)
    ]
    write("03_baselines", rows, __file__, SETTINGS)


if __name__ == "__main__":
    main()
