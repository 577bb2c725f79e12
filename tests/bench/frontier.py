"""The study behind notebook 12: `python tests/bench/frontier.py [seed ...]` writes notebooks/12_frontier.csv.

The same budget of samples for each way of making the bundled GPT-2 sound happier, at several strengths each: a
frontier of reward against KL. Rewards, prompts and sampling are those of notebook 07. Runs are ordered by seed, the
file is written after every run, and rows that it holds already are not run again.

offline dpo: all pairs come from the reference before the first step; online dpo: from the policy, at each step.
The labels of both are P(first preferred) = sigmoid(score - other score), so beta means what it means for PPO.
best of n trains nothing; its KL is estimated from the scores of further samples of the reference, prompt by prompt.
"""

import copy
import random
import sys
import time
from dataclasses import replace

import torch
from study import FOLDER, write

from rlcourse.baselines import group_advantages
from rlcourse.best_of_n import best_of_n_kl_bound, best_of_n_probabilities
from rlcourse.data import load_prompts, load_study
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.grpo import grpo_update
from rlcourse.losses import exact_kl
from rlcourse.plotting import progress
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.preference_losses import dpo_loss
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.rewards import sentiment_reward

SETTINGS = dict(steps=16, batch=48, group=4, new_tokens=16, lr=5e-4, value_lr=1e-3, epochs=1)
PRICES = (0.03, 0.1, 0.25)  # kl_coef of all but GRPO, whose scores are divided by their standard deviation
STRENGTHS = {
    "ppo": PRICES,
    "rloo": PRICES,
    "grpo": (0.2, 0.6, 1.5),
    "online dpo": PRICES,
    "offline dpo": PRICES,
}
REFERENCE, REWARD = GPT2Policy.from_pretrained("tiny", device="cpu").frozen_copy(), sentiment_reward()
CFG = PPOConfig(epochs=SETTINGS["epochs"])
NS, POOL = (2, 4, 8, 16), 96  # best of n; samples for each held-out prompt
SEEDS = (0, 1, 2, 3, 4)


class Run:
    """What every method starts with, from one seed."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        s = SETTINGS
        self.generator, self.chooser = torch.Generator().manual_seed(seed), random.Random(seed)
        self.prompts = load_prompts("train")
        self.policy = copy.deepcopy(REFERENCE).requires_grad_(True)
        head = dict(params=self.policy.value_head.parameters(), lr=s["value_lr"])
        self.optimizer = torch.optim.AdamW([dict(params=self.policy.lm.parameters(), lr=s["lr"]), head], fused=True)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.02, total_iters=s["steps"])

    def sample(self, policy: GPT2Policy, group: int):
        """SETTINGS["batch"] responses, `group` to each prompt, with the reference's log-probabilities, and scores."""
        chosen = self.chooser.choices(self.prompts, k=SETTINGS["batch"] // group)
        prompts = [prompt for prompt in chosen for _ in range(group)]
        rollout = sample_responses(policy, prompts, SETTINGS["new_tokens"], generator=self.generator)
        scores = REWARD(prompts, response_texts(policy, rollout))
        if policy is REFERENCE:
            return replace(rollout, ref_logprobs=rollout.old_logprobs), scores
        return replace(rollout, ref_logprobs=REFERENCE.evaluate(rollout.inputs, rollout.actions)[0]), scores


def ppo_step(run: Run, kl_coef: float, step: int) -> None:
    rollout, scores = run.sample(run.policy, 1)
    rewards = kl_shaped_rewards(scores, rollout.old_logprobs, rollout.ref_logprobs, rollout.mask, kl_coef)
    advantages, returns = gae(rewards, rollout.values, rollout.mask, gamma=1.0, lam=1.0)
    ppo_update(run.policy, run.optimizer, rollout, advantages, returns, CFG)


def rloo_step(run: Run, kl_coef: float, step: int) -> None:
    """PPO's clipped steps, the critic replaced by the other responses to the same prompt."""
    rollout, scores = run.sample(run.policy, SETTINGS["group"])
    rewards = kl_shaped_rewards(scores, rollout.old_logprobs, rollout.ref_logprobs, rollout.mask, kl_coef)
    advantages = group_advantages(rewards.sum(1), SETTINGS["group"])[:, None] * rollout.mask
    ppo_update(run.policy, run.optimizer, rollout, advantages, torch.zeros_like(rewards), replace(CFG, vf_coef=0.0))


def grpo_step(run: Run, kl_coef: float, step: int) -> None:
    rollout, scores = run.sample(run.policy, SETTINGS["group"])
    advantages = group_advantages(scores, SETTINGS["group"], "std")
    grpo_update(run.policy, run.optimizer, rollout, advantages, CFG, kl_coef)


def dpo_steps(run: Run, rollout, scores, kl_coef: float) -> None:
    """Four minibatches of the pairs; rows 0 and 1 are a pair, 2 and 3, and so on."""
    first = torch.arange(0, len(rollout), 2)
    for _ in range(CFG.epochs):
        for pairs in first[torch.randperm(len(first))].tensor_split(4):
            rows = torch.cat([pairs, pairs + 1])
            batch = rollout[rows]
            logprobs, _ = run.policy.evaluate(batch.inputs, batch.actions)
            now, ref = ((x * batch.mask).sum(1).chunk(2) for x in (logprobs, batch.ref_logprobs))
            loss = dpo_loss(*now, *ref, kl_coef, (scores[pairs] - scores[pairs + 1]).sigmoid())
            run.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(run.policy.parameters(), 1.0)
            run.optimizer.step()


def online_dpo_step(run: Run, kl_coef: float, step: int) -> None:
    dpo_steps(run, *run.sample(run.policy, 2), kl_coef)


def offline_dpo_step(run: Run, kl_coef: float, step: int) -> None:
    dpo_steps(run, *run.sample(REFERENCE, 2), kl_coef)  # never a text of the policy's own


STEPS = {
    "ppo": ppo_step,
    "rloo": rloo_step,
    "grpo": grpo_step,
    "online dpo": online_dpo_step,
    "offline dpo": offline_dpo_step,
}


def train(method: str, kl_coef: float, seed: int) -> dict:
    """One run: what the policy scores on held-out prompts, its exact KL to the reference in nats, and the seconds."""
    run, start = Run(seed), time.perf_counter()
    for step in progress(range(SETTINGS["steps"]), desc=f"{method} {kl_coef} {seed}"):
        STEPS[method](run, kl_coef, step)
        run.schedule.step()
    seconds = time.perf_counter() - start
    return dict(method=method, strength=kl_coef, seed=seed, seconds=seconds) | judge(run.policy, seed)


@torch.no_grad()
def judge(policy: GPT2Policy, seed: int, rounds: int = 4) -> dict:
    """256 responses to the held-out prompts: mean score, exact KL a response, mean number of words."""
    generator, prompts = torch.Generator().manual_seed(1000 + seed), load_prompts("held_out")
    score, kl, words = 0.0, 0.0, 0.0
    for _ in range(rounds):
        rollout = sample_responses(policy, prompts, SETTINGS["new_tokens"], generator=generator)
        logits, ref_logits = (p.logits(rollout.inputs, rollout.actions) for p in (policy, REFERENCE))
        texts = response_texts(policy, rollout)
        kl += exact_kl(logits, ref_logits, rollout.mask).sum(1).mean().item() / rounds
        score += REWARD(prompts, texts).mean().item() / rounds
        words += sum(len(text.split()) for text in texts) / len(texts) / rounds
    return dict(score=score, kl=kl, words=words)


def best_of_n(seed: int) -> list[dict]:
    """Rows for every n: expected best score and KL, from the scores of POOL samples for each held-out prompt."""
    prompts = load_prompts("held_out")
    generator, start, lengths, columns = torch.Generator().manual_seed(seed), time.perf_counter(), [], []
    for _ in range(POOL):
        rollout = sample_responses(REFERENCE, prompts, SETTINGS["new_tokens"], generator=generator)
        texts = response_texts(REFERENCE, rollout)
        columns.append(REWARD(prompts, texts))
        lengths.append(torch.tensor([float(len(text.split())) for text in texts]))
    scores, words = torch.stack(columns, 1).double(), torch.stack(lengths, 1).double()  # [prompts, POOL]
    seconds, rows = time.perf_counter() - start, []
    uniform = torch.full((POOL,), 1 / POOL, dtype=torch.float64)
    for n in (1, *NS):
        p = torch.stack([best_of_n_probabilities(uniform, row, n) for row in scores])
        kl = max(0.0, (p * (p * POOL).clamp(min=1e-300).log()).sum(1).mean().item())
        found = dict(score=(p * scores).sum(1).mean().item(), kl=kl, words=(p * words).sum(1).mean().item())
        rows.append(dict(method="best of n", strength=n, seed=seed, seconds=seconds) | found)
        assert kl <= best_of_n_kl_bound(n) + 1e-9
    return rows


def main() -> None:
    file = FOLDER / "12_frontier.csv"
    rows = load_study(str(file))[1] if file.exists() else []
    done = {(row["method"], row["strength"], row["seed"]) for row in rows}
    about = f"{SETTINGS}, {CFG}, best of n from {POOL} samples a prompt"
    seeds = [int(x) for x in sys.argv[1:]] or SEEDS
    runs = [(m, strength, seed) for part in (slice(2), slice(2, 3)) for seed in seeds
            for m in STEPS for strength in STRENGTHS[m][part]]  # fmt: skip
    for method, kl_coef, seed in runs:
        if (method, kl_coef, seed) not in done:
            rows.append(train(method, kl_coef, seed))
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
            write("12_frontier", rows, __file__, about, ("transformers",))
    for seed in seeds:
        if ("best of n", NS[0], seed) not in done:
            rows += best_of_n(seed)
            write("12_frontier", rows, __file__, about, ("transformers",))


if __name__ == "__main__":
    main()
