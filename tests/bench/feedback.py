"""The study behind notebook 08: `python tests/bench/feedback.py [variant ...]` -> notebooks/08_{loop,adversarial}.csv

loop: the proxy of 300 labels of overoptimization.py is trained again after every ten iterations of PPO, with 60 new
labels. "own texts" rates what the policy has just written, "reviews" as many further film reviews. The rater is
simulated: the gold standard's score plus the noise of one person, in whole numbers. The first forty iterations of
variant "300" in 08_over.csv are the same without new labels.

adversarial: no ratings at all. A discriminator learns to tell human endings of film reviews from the policy's, and its
log-odds are the reward; it and the policy learn in turns ("alternating"). Before the first and at the last iteration
a new discriminator, which the policy has never met, says how easily its texts are told from people's ("fresh").
"""

import math
import random
import sys
import time

import numpy as np
import torch
from overoptimization import EPOCHS, SEEDS, SETTINGS, iterations, pearson, sentences, train_proxy
from study import FOLDER, write

from rlcourse.bag_of_words import BagOfWords
from rlcourse.data import load_human_ratings, load_study
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae
from rlcourse.reward_model import RewardModel, discriminator_loss, fit_ratings
from rlcourse.rewards import distinct_n

LABELS, STEPS, EVERY, NEW = 300, 40, 10, 60
GAME = dict(
    steps=25, batch=48, prompt_tokens=4, new_tokens=24, lr=3e-4, value_lr=1e-3,
    warmup=40, judge_lr=5e-4, judge_head_lr=5e-3, judge_steps=2,
)  # fmt: skip


def simulated_rater(gold, noise: float, seed: int):
    """One person's ratings of texts, from -4 to 4: the gold score and a deviation of her own. Nobody is asked."""
    generator = torch.Generator().manual_seed(seed)

    def rate(texts: list[str]) -> list[float]:
        scores = gold.rate(texts)
        return (scores + noise * torch.randn(len(texts), generator=generator)).round().clamp(-4, 4).tolist()

    return rate


def loop(variant: str, seed: int, pool: list, gold, held_out) -> list[dict]:
    """Forty iterations of PPO against the proxy of 300 labels, which learns from 60 new ones after every ten."""
    rng, rater = random.Random(1000 + seed), simulated_rater(gold, load_human_ratings("movies").std.mean(), seed)
    proxy, rows = train_proxy(pool, LABELS, seed), []
    labelled = random.Random(seed).sample(pool, LABELS)  # the same sentences as the proxy's
    further = rng.sample([pair for pair in pool if pair not in set(labelled)], STEPS // EVERY * NEW)
    now = dict(proxy=proxy)  # the reward of the next iteration
    agrees = pearson(proxy, held_out)
    for row, prompts, texts, scores, judged in iterations(lambda p, r: now["proxy"](p, r), gold, 0.0, seed, STEPS):
        sees = float(np.corrcoef(scores, judged)[0, 1])  # does the proxy order the policy's own texts as gold does?
        rows.append(dict(variant=variant, seed=seed) | row | dict(labels=len(labelled), people=agrees, sees=sees))
        if row["step"] % EVERY == 0 and row["step"] < STEPS:
            own = [p + r for p, r in zip(prompts, texts)][:NEW]
            chosen = own if variant == "own texts" else [further.pop()[0] for _ in range(NEW)]
            labelled = labelled + list(zip(chosen, rater(chosen)))
            now["proxy"] = proxy = RewardModel.from_pretrained("tiny", device="cpu")
            learned, ratings = zip(*labelled)
            fit_ratings(proxy, list(learned), ratings, EPOCHS[LABELS], SETTINGS["proxy_lr"], batch_size=16, seed=seed)
            agrees = pearson(proxy, held_out)
    return rows


def beginnings(policy: GPT2Policy, texts: list[str]) -> list[tuple[str, str]]:
    """Each text cut into its first tokens and at most as many further ones as the policy may write."""
    first = GAME["prompt_tokens"] + 1  # one more: the opening token
    last = first + GAME["new_tokens"]
    rows = [row for row in policy.tokenizer(texts)["input_ids"] if len(row) > first + 4]
    decode = policy.tokenizer.batch_decode
    return list(zip(decode([r[1:first] for r in rows]), decode([r[first:last] for r in rows])))


def judge_update(judge: RewardModel, optimizer, human: list[str], generated: list[str]) -> None:
    """One gradient step of the discriminator."""
    scores = judge.rate(human + generated)
    loss = discriminator_loss(scores[: len(human)], scores[len(human) :])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
    optimizer.step()


def new_judge() -> tuple[RewardModel, torch.optim.Optimizer]:
    judge = RewardModel.from_pretrained("tiny", device="cpu")
    groups = [
        dict(params=judge.trunk.parameters(), lr=GAME["judge_lr"]),
        dict(params=judge.head.parameters(), lr=GAME["judge_head_lr"]),
    ]
    return judge, torch.optim.AdamW(groups, fused=True)


@torch.no_grad()
def accuracy(judge: RewardModel, human: list[str], generated: list[str]) -> float:
    """Share of texts that the discriminator takes for what they are."""
    return ((judge.rate(human) > 0).float().mean().item() + (judge.rate(generated) < 0).float().mean().item()) / 2


def write_texts(policy, prompts: list[str], generator) -> tuple:
    rollout = sample_responses(policy, prompts, GAME["new_tokens"], generator=generator)
    texts = response_texts(policy, rollout)
    return rollout, texts, [p + r for p, r in zip(prompts, texts)]


def fresh_judge(policy, train: list, test: list, generator, rng) -> tuple:
    """A new discriminator after 40 steps on this policy's texts, its optimizer, and its accuracy on unseen texts."""
    judge, optimizer = new_judge()
    chosen = rng.sample(train, 32 * GAME["warmup"])
    for i in range(0, len(chosen), 256):
        some = chosen[i : i + 256]
        generated = write_texts(policy, [p for p, _ in some], generator)[2]
        for k in range(0, len(some), 32):
            judge_update(judge, optimizer, [p + r for p, r in some[k : k + 32]], generated[k : k + 32])
    some = rng.sample(test, 128)
    generated = write_texts(policy, [p for p, _ in some], generator)[2]
    return judge, optimizer, accuracy(judge, [p + r for p, r in some], generated)


def adversarial(seed: int, gold) -> list[dict]:
    """25 iterations of PPO against a discriminator."""
    torch.manual_seed(seed)
    s, rng, generator = GAME, random.Random(seed), torch.Generator().manual_seed(seed)
    policy = GPT2Policy.from_pretrained("tiny", device="cpu")
    ref_policy, cfg = policy.frozen_copy(), PPOConfig()
    train, test = (beginnings(policy, load_human_ratings("movies", split).text) for split in ("train", "test"))
    head = dict(params=policy.value_head.parameters(), lr=s["value_lr"])
    optimizer = torch.optim.AdamW([dict(params=policy.lm.parameters(), lr=s["lr"]), head], fused=True)
    judge, judge_optimizer, fresh = fresh_judge(policy, train, test, generator, rng)
    rows = []
    for step in range(1, s["steps"] + 1):
        human, unseen = rng.sample(train, s["batch"]), rng.sample(test, s["batch"])
        prompts = [p for p, _ in human]
        rollout, responses, texts = write_texts(policy, prompts, generator)
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        scores, nats = judge(prompts, responses), (ref_logprobs * rollout.mask).sum().item()
        kl = ((rollout.old_logprobs - ref_logprobs) * rollout.mask).sum(1).mean().item()
        right = accuracy(judge, [p + r for p, r in unseen], texts)
        if step == s["steps"]:
            fresh = fresh_judge(policy, train, test, generator, rng)[2]
        rows.append(
            dict(
                variant="alternating", seed=seed, step=step, kl=kl, reward=scores.mean().item(), accuracy=right,
                bits_per_byte=-nats / math.log(2) / sum(len(text.encode()) for text in responses),
                distinct=float(np.mean([distinct_n([text], 2) for text in responses])),
                gold=gold.rate(texts).mean().item(),
                length=rollout.mask.sum(1).mean().item(), fresh=fresh if step in (1, s["steps"]) else math.nan,
                text=texts[0],
            )
        )  # fmt: skip
        token_rewards = torch.zeros_like(rollout.mask)
        token_rewards[torch.arange(len(prompts)), rollout.mask.sum(1).long() - 1] = scores
        advantages, returns = gae(token_rewards, rollout.values, rollout.mask, gamma=1.0, lam=1.0)
        ppo_update(policy, optimizer, rollout, advantages, returns, cfg)
        for part in torch.randperm(s["batch"]).tensor_split(s["judge_steps"]):
            pick = part.tolist()
            judge_update(judge, judge_optimizer, ["".join(human[i]) for i in pick], [texts[i] for i in pick])
    return rows


def main() -> None:
    torch.set_num_threads(1)
    pool, others = sentences()
    gold, held_out = BagOfWords(*zip(*others)), load_human_ratings("movies", "test")
    for variant in sys.argv[1:] or ["own texts", "reviews", "alternating"]:
        name = "loop" if variant in ("own texts", "reviews") else "adversarial"
        file = FOLDER / f"08_{name}.csv"
        rows = [row for row in load_study(file)[1] if row["variant"] != variant] if file.exists() else []
        for seed in range(SEEDS):
            start = time.perf_counter()
            rows += loop(variant, seed, pool, gold, held_out) if name == "loop" else adversarial(seed, gold)
            last = {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}
            print(f"{variant} seed {seed}: {time.perf_counter() - start:.0f} s, {last}", flush=True)
            settings = f"{SETTINGS | dict(steps=STEPS)}, {EVERY=}, {NEW=}" if name == "loop" else str(GAME)
            write(f"08_{name}", rows, __file__, f"{settings}, {PPOConfig()}", ("transformers",))  # after every run


if __name__ == "__main__":
    main()
