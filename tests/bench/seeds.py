"""The study behind notebook 07: `python tests/bench/seeds.py` writes notebooks/07_{runs,steps,texts}.csv.

Ten seeds of the notebook's own loop, and three seeds each of the two variants it talks about: no KL penalty, and an
adaptive one. The settings were fixed on a few earlier runs; nothing is chosen per seed, and every run with them is in
the files.
"""

import math
import random
import time

import torch
from study import write

from rlcourse.data import load_prompts
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.losses import exact_kl
from rlcourse.plotting import progress
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import AdaptiveKL, gae, kl_shaped_rewards
from rlcourse.rewards import fluency_reward, sentiment_reward

SETTINGS = dict(steps=45, batch=64, new_tokens=24, lr=2e-4, value_lr=1e-3, kl_coef=0.045, gamma=1.0, lam=1.0)
ADAPTIVE = dict(target=4.0, horizon=200)
SEEDS = {"fixed": 10, "adaptive": 3, "no_kl": 3}


def train(seed: int, variant: str) -> tuple[GPT2Policy, list[dict], float]:
    """One run: the trained policy, one dict of statistics per iteration, and its seconds."""
    torch.manual_seed(seed)
    generator, chooser = torch.Generator().manual_seed(seed), random.Random(seed)
    policy, reward, prompts = (
        GPT2Policy.from_pretrained("tiny", device="cpu"),
        sentiment_reward(),
        load_prompts("train"),
    )
    ref_policy, cfg, s = policy.frozen_copy(), PPOConfig(), SETTINGS
    head = dict(params=policy.value_head.parameters(), lr=s["value_lr"])
    optimizer = torch.optim.AdamW([dict(params=policy.lm.parameters(), lr=s["lr"]), head], fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=s["steps"])
    kl_coef, controller = (0.0 if variant == "no_kl" else s["kl_coef"]), AdaptiveKL(s["kl_coef"], **ADAPTIVE)
    history, start = [], time.perf_counter()
    for _ in progress(range(s["steps"]), desc=f"{variant} {seed}"):
        batch = chooser.choices(prompts, k=s["batch"])
        rollout = sample_responses(policy, batch, s["new_tokens"], generator=generator)
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        scores = reward(batch, response_texts(policy, rollout))
        rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, kl_coef)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, s["gamma"], s["lam"])
        stats = ppo_update(policy, optimizer, rollout, advantages, returns, cfg)
        schedule.step()
        kl = ((rollout.old_logprobs - ref_logprobs) * rollout.mask).sum(1).mean().item()
        history.append(dict(score=scores.mean().item(), kl=kl, kl_coef=kl_coef) | stats)
        if variant == "adaptive":
            kl_coef = controller.update(kl, s["batch"])
    return policy, history, time.perf_counter() - start


@torch.no_grad()
def evaluate(policy: GPT2Policy, ref_policy: GPT2Policy, seed: int, rounds: int = 16) -> dict[str, float]:
    """1,024 responses to the 64 held-out prompts: mean score, exact KL per response, bits per byte under the reference.

    The bits count the end of a response that has one; `words` is the mean length.
    """
    generator, reward, prompts = (
        torch.Generator().manual_seed(10_000 + seed),
        sentiment_reward(),
        load_prompts("held_out"),
    )
    score, kl, nats, texts = 0.0, 0.0, 0.0, []
    for _ in range(rounds):
        rollout = sample_responses(policy, prompts, SETTINGS["new_tokens"], generator=generator)
        logits, ref_logits = (p.logits(rollout.inputs, rollout.actions) for p in (policy, ref_policy))
        kl += exact_kl(logits, ref_logits, rollout.mask).sum(1).mean().item() / rounds
        ref_logprobs = ref_logits.log_softmax(-1).gather(-1, rollout.actions[..., None])[..., 0]
        nats -= (ref_logprobs * rollout.mask).sum().item()
        texts += response_texts(policy, rollout)
        score += reward(prompts, texts[-len(prompts) :]).mean().item() / rounds
    bits_per_byte = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    return dict(score=score, kl=kl, bits_per_byte=bits_per_byte, words=sum(len(t.split()) for t in texts) / len(texts))


def examples(policy: GPT2Policy, ref_policy: GPT2Policy, count: int = 8) -> list[dict]:
    """The first `count` responses to every eighth held-out prompt, unselected, with score and fluency."""
    prompts = load_prompts("held_out")[:: 64 // count]
    rollout = sample_responses(policy, prompts, SETTINGS["new_tokens"], generator=torch.Generator().manual_seed(0))
    texts = response_texts(policy, rollout)
    columns = (
        prompts,
        texts,
        sentiment_reward()(prompts, texts).tolist(),
        fluency_reward(ref_policy)(prompts, texts).tolist(),
    )
    return [dict(prompt=p, response=r, score=s, bits_per_byte=-f) for p, r, s, f in zip(*columns)]


def main() -> None:
    ref_policy = GPT2Policy.from_pretrained("tiny", device="cpu").frozen_copy()
    runs = [dict(variant="before", seed=0, seconds=0.0) | evaluate(ref_policy, ref_policy, seed=0)]
    steps, texts = [], [dict(variant="before", seed=0) | e for e in examples(ref_policy, ref_policy)]
    for variant, count in SEEDS.items():
        for seed in range(count):
            policy, history, seconds = train(seed, variant)
            runs.append(dict(variant=variant, seed=seed, seconds=seconds) | evaluate(policy, ref_policy, seed))
            steps += [dict(variant=variant, seed=seed, step=i + 1) | stats for i, stats in enumerate(history)]
            if seed == 0:
                texts += [dict(variant=variant, seed=seed) | e for e in examples(policy, ref_policy)]
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in runs[-1].items()}, flush=True)
            for name, rows in dict(runs=runs, steps=steps, texts=texts).items():
                write(
                    f"07_{name}", rows, __file__, f"{SETTINGS | ADAPTIVE}, {PPOConfig()}", ("transformers",)
                )  # after every run, so that an interruption loses one


if __name__ == "__main__":
    main()
