"""The learning race of notebook 14: `.venv-peers/bin/python tests/bench/against_trl.py` (`make peers` makes that).

Writes notebooks/14_learning.csv: five seeds of ours and of TRL 1.12's PPOTrainer in turn, with the same model,
prompts, reward, learning rate, price of KL, batch, epochs and minibatches. A row is an iteration: samples and seconds
so far, and the mean score and KL (nats a response) of the responses that were sampled in it.
"""

import time

import torch
import trl_ppo
from side_by_side import PROMPT, make_prompts
from study import write

from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.losses import kl_estimate
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.rewards import sentiment_reward

SEEDS, STEPS = 5, 30
SETTINGS = dict(batch=64, new_tokens=24, learning_rate=2e-4, kl_coef=0.02)
VALUE_RATE = 1e-3  # of our value head, as in notebook 07; TRL's value model is a whole GPT-2 and has the common rate
CFG = PPOConfig()


def train_ours(seed: int) -> list[dict]:
    torch.manual_seed(seed)
    policy, reward, s = GPT2Policy.from_pretrained("tiny"), sentiment_reward(), SETTINGS
    ref_policy, pool = policy.frozen_copy(), make_prompts(policy, 80)
    head = dict(params=policy.value_head.parameters(), lr=VALUE_RATE)
    optimizer = torch.optim.AdamW([dict(params=policy.lm.parameters(), lr=s["learning_rate"]), head], fused=True)
    history, start = [], time.perf_counter()
    for _ in range(STEPS):
        prompts = [pool[i] for i in torch.randint(len(pool), (s["batch"],))]
        rollout = sample_responses(policy, prompts, s["new_tokens"])
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        scores = reward([""] * len(prompts), response_texts(policy, rollout))  # as TRL's reward, on the response alone
        rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, s["kl_coef"])
        advantages, returns = gae(rewards, rollout.values, rollout.mask, 1.0, 1.0)
        ppo_update(policy, optimizer, rollout, advantages, returns, CFG)
        kl = kl_estimate(rollout.old_logprobs, ref_logprobs, rollout.mask).sum(1).mean()
        history.append(dict(seconds=time.perf_counter() - start, score=scores.mean().item(), kl=kl.item()))
    return history


def train_trl(seed: int) -> list[dict]:
    torch.manual_seed(seed)
    policy = GPT2Policy.from_pretrained("tiny")
    trainer, clock = trl_ppo.trainer(
        policy, make_prompts(policy, 80), sentiment_reward(), iterations=STEPS, epochs=CFG.epochs,
        minibatches=CFG.minibatches, stop=True, seed=seed, **SETTINGS,
    )  # fmt: skip
    trainer.train()
    seconds = torch.tensor(clock.seconds).cumsum(0).tolist()
    logs = [log for log in clock.logs if "objective/kl" in log]
    return [
        dict(seconds=s, score=log["objective/scores"], kl=log["objective/kl"])
        for s, log in zip(seconds, logs, strict=True)
    ]


def main() -> None:
    torch.set_num_threads(2)
    rows = []
    for seed in range(SEEDS):
        for who, train in (("ours", train_ours), ("TRL", train_trl)):
            history = train(seed)
            for step, row in enumerate(history):
                rows.append(dict(who=who, seed=seed, samples=(step + 1) * SETTINGS["batch"]) | row)
            print(who, seed, {k: round(v, 3) for k, v in history[-1].items()}, flush=True)
            about = f"{SEEDS} seeds, {STEPS} iterations, {SETTINGS}, head {VALUE_RATE}, {CFG}, prompt {PROMPT} tokens"
            write("14_learning", rows, __file__, about, ("transformers", "trl"))


if __name__ == "__main__":
    main()
