"""The study behind notebook 08: `python tests/bench/overoptimization.py` writes notebooks/08_{over,proxies,texts}.csv.

Proxies are reward models trained on 100, 300, 1,000 and 5,000 mean ratings of film reviews. PPO raises each without a
KL penalty, while a gold standard of another class looks on: a ridge regression on words, trained on other sentences.
Two remedies are tried on the proxy of 300 labels: a price of KL, and the lower bound of an ensemble of three.
Five seeds each; a seed draws the labels, the order of training, and every sampled text.
"""

import csv
import math
import random
import time

import numpy as np
import torch
from study import FOLDER, write

from rlcourse.bag_of_words import BagOfWords
from rlcourse.data import load_human_ratings, load_prompts
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.reward_model import RewardModel, fit_ratings, lower_bound
from rlcourse.rewards import distinct_n

SETTINGS = dict(steps=80, batch=64, new_tokens=24, lr=3e-4, value_lr=1e-3, gamma=1.0, lam=1.0, proxy_lr=5e-4)
EPOCHS = {100: 8, 300: 6, 1000: 4, 5000: 2}  # of the proxies: few labels are looked at more often
VARIANTS = {  # name: labels, price of KL, models in the ensemble
    "300": (300, 0.0, 1),
    "5000": (5000, 0.0, 1),
    "300, KL 0.05": (300, 0.05, 1),
    "300, ensemble": (300, 0.0, 3),
    "100": (100, 0.0, 1),
    "1000": (1000, 0.0, 1),
}
SEEDS = 5


def sentences() -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """5,000 rated film reviews for the proxies, and for the gold standard all other sentences of the train split."""
    movies, everything = load_human_ratings("movies", "train"), load_human_ratings("all", "train")
    rated = list(zip(movies.text, movies.mean.tolist()))
    random.Random(0).shuffle(rated)
    taken = {text for text, _ in rated[:5000]}
    return rated[:5000], [(t, m) for t, m in zip(everything.text, everything.mean.tolist()) if t not in taken]


def train_proxy(pool: list[tuple[str, float]], labels: int, seed: int, member: int = 0) -> RewardModel:
    """A reward model of `labels` sentences; members of an ensemble share them and differ in order and resampling."""
    torch.manual_seed(seed)
    chosen = random.Random(seed).sample(pool, labels)
    if member:
        chosen = random.Random(100 * seed + member).choices(chosen, k=labels)  # a bootstrap sample
    model = RewardModel.from_pretrained("tiny", device="cpu")
    texts, ratings = zip(*chosen)
    fit_ratings(
        model, list(texts), ratings, EPOCHS[labels], SETTINGS["proxy_lr"], batch_size=16, seed=100 * seed + member
    )
    return model


@torch.no_grad()
def pearson(model, table) -> float:
    """Correlation of the model's scores with people's mean ratings."""
    scores = torch.cat([model.rate(table.text[i : i + 100]) for i in range(0, len(table), 100)])
    return float(np.corrcoef(scores, table.mean)[0, 1])


def iterations(reward, gold, kl_coef: float, seed: int, steps: int = SETTINGS["steps"]):
    """PPO against `reward`: after each iteration its statistics, the prompts, the texts and their scores."""
    torch.manual_seed(seed)
    generator, chooser, s = torch.Generator().manual_seed(seed), random.Random(seed), SETTINGS
    policy, prompts, cfg = GPT2Policy.from_pretrained("tiny", device="cpu"), load_prompts("train"), PPOConfig()
    ref_policy = policy.frozen_copy()
    head = dict(params=policy.value_head.parameters(), lr=s["value_lr"])
    optimizer = torch.optim.AdamW([dict(params=policy.lm.parameters(), lr=s["lr"]), head], fused=True)
    for step in range(1, steps + 1):
        batch = chooser.choices(prompts, k=s["batch"])
        rollout = sample_responses(policy, batch, s["new_tokens"], generator=generator)
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        texts = response_texts(policy, rollout)
        scores, judged = reward(batch, texts), gold(batch, texts)
        nats = (ref_logprobs * rollout.mask).sum().item()
        yield (
            dict(
                step=step,
                kl=((rollout.old_logprobs - ref_logprobs) * rollout.mask).sum(1).mean().item(),
                proxy=scores.mean().item(),
                gold=judged.mean().item(),
                bits_per_byte=-nats / math.log(2) / sum(len(text.encode()) for text in texts),
                distinct=float(np.mean([distinct_n([text], 2) for text in texts])),
            ),
            batch,
            texts,
            scores,
            judged,
        )
        rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, kl_coef)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, s["gamma"], s["lam"])
        ppo_update(policy, optimizer, rollout, advantages, returns, cfg)


def finished() -> dict[str, list[dict]]:
    """The rows of complete runs of an earlier, interrupted call; nothing if its settings were others."""
    about = FOLDER / "08_over.csv"
    if not about.exists() or f"# {SETTINGS}, epochs {EPOCHS}" not in about.read_text(encoding="utf-8"):
        return {}
    files = {}
    for name in ("over", "texts", "proxies"):
        with open(FOLDER / f"08_{name}.csv", newline="", encoding="utf-8") as file:
            files[name] = list(csv.DictReader(line for line in file if not line.startswith("# ")))
    return files


def main() -> None:
    torch.set_num_threads(1)
    pool, others = sentences()
    gold, held_out = BagOfWords(*zip(*others)), load_human_ratings("movies", "test")
    files = finished() or dict(
        over=[], texts=[], proxies=[dict(variant="gold", seed=0, pearson=pearson(gold, held_out))]
    )
    done = {(row["variant"], int(row["seed"])) for row in files["over"]}
    for seed in range(SEEDS):
        for variant, (labels, kl_coef, members) in VARIANTS.items():
            if (variant, seed) in done:
                continue
            start = time.perf_counter()
            proxies = [train_proxy(pool, labels, seed, member) for member in range(members)]
            reward = lower_bound(proxies) if members > 1 else proxies[0]
            files["proxies"].append(dict(variant=variant, seed=seed, pearson=pearson(proxies[0], held_out)))
            for row, batch, texts, scores, judged in iterations(reward, gold, kl_coef, seed):
                files["over"].append(dict(variant=variant, seed=seed) | row)
                if seed < 2 and row["step"] in (1, 10, 20, 30, 40, 60, 80):
                    numbers = zip(batch, texts, scores.tolist(), judged.tolist())
                    files["texts"] += [
                        dict(variant=variant, seed=seed, step=row["step"], prompt=p, response=r, proxy=s, gold=g)
                        for p, r, s, g in list(numbers)[:4]
                    ]
            best = max((row for row in files["over"][-SETTINGS["steps"] :]), key=lambda row: row["gold"])
            print(
                f"{variant} seed {seed}: {time.perf_counter() - start:.0f} s, best gold {best}, last {row}", flush=True
            )
            for name, rows in files.items():  # after every run, so that an interruption loses one
                write(f"08_{name}", rows, __file__, f"{SETTINGS}, epochs {EPOCHS}, {PPOConfig()}", ("transformers",))


if __name__ == "__main__":
    main()
