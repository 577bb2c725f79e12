"""The studies behind notebook 11: `python tests/bench/q_learning.py` writes notebooks/11_*.csv.

methods: ten seeds of each learner with the same recurrent network and the same number of texts on the target-text task,
with a vocabulary of 8 and of 64, paid token by token or at the end. `greedy` is the score of the text a learner writes
when it always takes its best token, `mean` that of the texts it wrote to learn from.
rates: the settings tried for each learner on two other seeds (100 and 101) and the tasks paid at the end; the one with
the best final greedy score, averaged over these, is used everywhere. The variants of Q-learning share its settings.
noise: twenty tables learn from random texts of the small world of notebook 05, rewards with normal noise of standard
deviation 1, step sizes 1/visits and 2/visits; the root mean squared error of Q over the 45 states and actions.
cartpole: five seeds of tabular Q-learning on CartPole, each of whose four numbers is cut into n bins.

Rows are written after every run, and a study that was interrupted goes on where it stopped.
"""

import time

import gymnasium
import numpy as np
import torch
from study import FOLDER, write

from rlcourse.data import load_study
from rlcourse.envs import TokenMDP
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.q_learning import (
    EpsilonGreedy,
    Replay,
    Transitions,
    all_transitions,
    dqn_loss,
    epsilon_greedy,
    linear_decay,
    q_learning_update,
    transitions,
)
from rlcourse.reinforce import reinforce_update
from rlcourse.returns import discounted_returns, gae
from rlcourse.rnn import RNNPolicy
from rlcourse.rollout import sample_tokens

TARGET = "learning"
SETTINGS = dict(texts=64, iterations=160, hidden=32, explore=80, steps=4, capacity=4096, copy_every=10)
TASKS = {"8, at once": (8, True), "8, at the end": (8, False), "64, at once": (64, True), "64, at the end": (64, False)}
TRIED = dict(  # learning rate, entropy coefficient
    q=[(3e-3, 0.0), (1e-2, 0.0), (2e-2, 0.0)],
    reinforce=[(3e-3, 0.01), (1e-2, 0.003), (1e-2, 0.01), (1e-2, 0.03), (1e-2, 0.1), (1e-2, 0.3), (2e-2, 0.01)],
    ppo=[(3e-3, 0.1), (1e-2, 0.03), (1e-2, 0.1), (1e-2, 0.3), (2e-2, 0.1)],
)
VARIANTS = ("q, no target network", "q, no replay", "q, neither")  # on the first vocabulary, paid at the end
SEEDS, EVERY = 10, 5
NOISE = dict(step_sizes=(1.0, 2.0), seeds=20, texts=100_000, std=1.0, marks=33)
CART = dict(bins=(1, 2, 4, 6, 8, 12), seeds=5, steps=60_000, step_size=0.1, gamma=0.99, episodes=20)
EDGES = np.array([2.4, 3.0, 0.2095, 3.0])  # position, speed, angle, turning; what lies outside is in the outer bins


def pairs(actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N, T]: 1 for every b that directly follows an a."""
    hit = torch.zeros_like(mask)
    hit[:, 1:] = ((actions[:, :-1] == 0) & (actions[:, 1:] == 1)) * mask[:, 1:]
    return hit


def noise(step_size: float) -> list[dict]:
    """Step size `step_size` / visits. Every seed has its own table; all learn from one text each at a time."""
    mdp, seeds, texts = TokenMDP(3, 4, pairs, eos=2), NOISE["seeds"], NOISE["texts"]
    world, exact, S = all_transitions(mdp), mdp.optimal_q_values(), mdp.num_states
    generator, own = torch.Generator().manual_seed(0), torch.arange(seeds)[:, None].expand(-1, 4) * S
    q, visits = exact.new_zeros(seeds * S, 3), exact.new_zeros(seeds * S, 3)
    marks, rows = set(np.logspace(1, np.log10(texts), NOISE["marks"]).round().astype(int).tolist()), []
    for n in range(1, texts + 1):
        actions = torch.randint(3, (seeds, 4), generator=generator)
        ended = (actions == 2).long()
        mask = (ended.cumsum(1) - ended == 0).double()
        rewards = pairs(actions, mask)
        rewards += NOISE["std"] * torch.randn(rewards.shape, generator=generator, dtype=torch.float64)
        steps, first = transitions(actions, rewards, mask, 3), own[mask > 0]
        steps = steps._replace(states=steps.states + first, next_states=steps.next_states + first)
        q_learning_update(q, steps, step_size, visits=visits)
        if n in marks:
            errors = (q.view(seeds, S, 3) - exact)[:, world.states, world.actions].pow(2).mean(1).sqrt()
            rows += [
                dict(step_size=step_size, seed=seed, texts=n, error=error) for seed, error in enumerate(errors.tolist())
            ]
    return rows


def right_places(actions: torch.Tensor, at_once: bool) -> torch.Tensor:
    """Rewards [B, T]: 1/T for each token that stands where the target has it, paid at once or all at the end."""
    symbols = sorted(set(TARGET))
    hit = (actions == torch.tensor([symbols.index(c) for c in TARGET])).float() / len(TARGET)
    return hit if at_once else torch.cat([torch.zeros_like(hit[:, 1:]), hit.sum(1, keepdim=True)], 1)


def q_steps(network, target, optimizer, memory, learner: str, fresh: tuple, generator) -> None:
    """The gradient steps of Q-learning after one batch of fresh texts."""
    for _ in range(SETTINGS["steps"]):
        no_replay, no_target = ("no replay" in learner, "no target" in learner) if "," in learner else (False, False)
        both = "neither" in learner
        actions, paid, mask = fresh if no_replay or both else memory.sample(SETTINGS["texts"], generator)
        empty = actions[:, :0]
        q = network.logits(empty, actions)
        with torch.no_grad():
            target_q = q if no_target or both else target.logits(empty, actions)
        optimizer.zero_grad()
        dqn_loss(q, target_q, actions, paid, mask).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def train(task: str, learner: str, lr: float, ent_coef: float, seed: int) -> list[dict]:
    """One run: one dict for every kept iteration."""
    torch.manual_seed(seed)
    generator, s, (vocab_size, at_once) = torch.Generator().manual_seed(seed), SETTINGS, TASKS[task]
    network, target, valued = RNNPolicy(vocab_size, s["hidden"]), RNNPolicy(vocab_size, s["hidden"]), learner[0] == "q"
    if valued:  # all Q-values are 0 at first
        for parameter in network.projection.parameters():
            torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, s["iterations"])
    memory, empty, history, start = Replay(s["capacity"]), torch.zeros(s["texts"], 0).long(), [], time.perf_counter()
    cfg = PPOConfig(epochs=2, minibatches=s["steps"] // 2, ent_coef=ent_coef)
    for i in range(s["iterations"]):
        writer = EpsilonGreedy(network, linear_decay(i, s["explore"])) if valued else network
        rollout = sample_tokens(writer, empty, len(TARGET), generator=generator)
        rewards = right_places(rollout.actions, at_once)
        if valued:
            if i * s["steps"] % s["copy_every"] < s["steps"]:
                target.load_state_dict(network.state_dict())
            memory.add(rollout.actions, rewards, rollout.mask)
            q_steps(network, target, optimizer, memory, learner, (rollout.actions, rewards, rollout.mask), generator)
        elif learner == "reinforce":
            advantages = discounted_returns(rewards, rollout.mask)
            advantages = advantages - advantages.mean(0)  # the mean of the batch, place by place, is the baseline
            reinforce_update(network, optimizer, rollout, advantages, ent_coef=ent_coef, max_grad_norm=1.0)
        else:
            advantages, returns = gae(rewards, rollout.values, rollout.mask, 1.0, 0.95)
            ppo_update(network, optimizer, rollout, advantages, returns, cfg)
        schedule.step()
        if (i + 1) % EVERY == 0:
            text = sample_tokens(EpsilonGreedy(network), empty[:1], len(TARGET)).actions
            scores = dict(greedy=right_places(text, True).sum().item(), mean=rewards.sum(1).mean().item())
            history.append(dict(iteration=i + 1) | scores | dict(seconds=time.perf_counter() - start))
    return history


def kept(name: str) -> list[dict]:
    """The rows that an interrupted study has already written."""
    path = FOLDER / f"11_{name}.csv"
    rows = load_study(path)[1] if path.exists() else []
    return [
        {k: int(v) if isinstance(v, float) and k in ("seed", "iteration", "bins") else v for k, v in row.items()}
        for row in rows
    ]


def choose_rates() -> dict[str, tuple[float, float]]:
    rows, best = kept("rates"), {}
    done = {(r["learner"], r["lr"], r["ent_coef"]) for r in rows}
    for learner, settings in TRIED.items():
        for lr, ent_coef in settings:
            if (learner, lr, ent_coef) not in done:
                ends = [
                    train(task, learner, lr, ent_coef, seed)[-1]["greedy"]
                    for task in list(TASKS)[1::2]
                    for seed in (100, 101)
                ]
                rows.append(
                    dict(learner=learner, lr=lr, ent_coef=ent_coef, greedy=float(np.mean(ends)), worst=min(ends))
                )
                write("11_rates", rows, __file__, f"{SETTINGS}, tried {TRIED}")
                print(rows[-1], flush=True)
        best[learner] = max((r["greedy"], r["lr"], r["ent_coef"]) for r in rows if r["learner"] == learner)[1:]
    return best


def methods(best: dict[str, tuple[float, float]]) -> None:
    rows = kept("methods")
    done = {(r["task"], r["learner"], r["seed"]) for r in rows}
    for seed in range(SEEDS):
        runs = [(task, learner) for learner in TRIED for task in TASKS] + [(list(TASKS)[1], v) for v in VARIANTS]
        for task, learner in runs:
            if (task, learner, seed) not in done:
                history = train(task, learner, *best[learner.split(",")[0]], seed)
                rows += [dict(task=task, learner=learner, seed=seed) | row for row in history]
                write("11_methods", rows, __file__, f"{SETTINGS}, target {TARGET}, (rate, entropy) {best}")
                print(task, learner, seed, history[-1], flush=True)


def box_number(observations: np.ndarray, bins: int) -> torch.Tensor:
    """[B, 4] observations -> the number of the box [B] that each lies in."""
    places = np.clip((observations / EDGES + 1) / 2 * bins, 0, bins - 1).astype(np.int64)
    return torch.from_numpy(places @ bins ** np.arange(4))


def cartpole(bins: int) -> list[dict]:
    """All seeds side by side: an environment and a table of its own for each."""
    seeds, steps, gamma = CART["seeds"], CART["steps"], CART["gamma"]
    reset = dict(autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
    envs = gymnasium.make_vec("CartPole-v1", seeds, "sync", vector_kwargs=reset)
    generator, own = torch.Generator().manual_seed(bins), torch.arange(seeds) * bins**4
    q, visits = torch.zeros(seeds * bins**4, 2), torch.zeros(seeds * bins**4)
    observations, _ = envs.reset(seed=bins)
    totals, finished = np.zeros(seeds), [[] for _ in range(seeds)]
    for step in range(10**9):
        state, learning = own + box_number(observations, bins), step < steps
        epsilon = linear_decay(step, steps // 2) if learning else 0.0
        actions = torch.multinomial(epsilon_greedy(q[state], epsilon), 1, generator=generator)[:, 0]
        observations, rewards, terminated, truncated, info = envs.step(actions.numpy())
        over = terminated | truncated
        seen = observations.copy()
        for i in np.flatnonzero(over):
            seen[i] = info["final_obs"][i]
        if learning:
            visits[state] += 1
            ends = torch.from_numpy(terminated).float()  # one that was cut off could have gone on
            numbers = torch.from_numpy(rewards).float(), own + box_number(seen, bins), ends
            q_learning_update(q, Transitions(state, actions, *numbers), CART["step_size"], gamma)
        totals += rewards
        for i in np.flatnonzero(over):
            if not learning and step - totals[i] >= steps - 1:  # begun after learning
                finished[i].append(totals[i])
            totals[i] = 0
        if min(map(len, finished)) >= CART["episodes"]:
            break
    share = (visits.view(seeds, -1) > 0).float().mean(1)
    means = [float(np.mean(x[: CART["episodes"]])) for x in finished]
    return [dict(bins=bins, seed=i, boxes=bins**4, visited=share[i].item(), mean_return=means[i]) for i in range(seeds)]


def main() -> None:
    torch.set_num_threads(1)
    rows = kept("noise")
    for step_size in NOISE["step_sizes"]:
        if step_size not in {r["step_size"] for r in rows}:
            rows += noise(step_size)
            write("11_noise", rows, __file__, NOISE)
    rows = kept("cartpole")
    for bins in CART["bins"]:
        if bins not in {r["bins"] for r in rows}:
            rows += cartpole(bins)
            write("11_cartpole", rows, __file__, CART, ("gymnasium",))
            print(rows[-1], flush=True)
    methods(choose_rates())


if __name__ == "__main__":
    main()
