"""The studies behind notebook 04: `python tests/bench/immediate.py` writes notebooks/04_{next_token,keyword}.csv.

next_token: a recurrent language model is trained by the immediate reward "guessed the right next token" and by maximum
likelihood, on the same batches of film reviews, for the same number of steps. keyword: the bundled GPT-2 is paid for a
keyword at the token that completes it, or at the end of the response. Nothing is chosen per seed, and every run with
these settings is in the files. `python tests/bench/immediate.py keyword` makes one of them.
"""

import dataclasses
import random
import sys
import time

import torch
from study import write

from rlcourse import baselines, data, gpt2, losses, returns, rewards, rnn
from rlcourse.masking import masked_mean
from rlcourse.reinforce import reinforce_update

NEXT_TOKEN = dict(steps=200, batch=32, hidden=64, lr=5e-3, max_grad_norm=1.0, every=20, seeds=5, test_texts=200)
LONGEST = dict(tokens=16, characters=48)  # later tokens of a text are cut off
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz.,'-"  # the line end is EOS
VARIANTS = {  # (vocabulary, name): what differs; start: steps of likelihood first, of the same 200
    ("tokens", "likelihood"): dict(start=200),
    ("tokens", "reward"): {},
    ("tokens", "reward, small steps"): dict(lr=1e-3),
    ("tokens", "reward + entropy"): dict(ent_coef=0.01),
    ("tokens", "start, then reward"): dict(start=100),
    ("tokens", "start, then reward - KL"): dict(start=100, kl_coef=0.1),
    ("characters", "likelihood"): dict(start=200),
    ("characters", "reward"): {},
    ("characters", "reward, small steps"): dict(lr=1e-3),
    ("characters", "reward + entropy"): dict(ent_coef=0.1),
    ("characters", "start, then reward"): dict(start=100),
    ("characters", "start, then reward - KL"): dict(start=100, kl_coef=0.1),
}
KEYWORD = dict(steps=30, batch=64, new_tokens=24, lr=2e-4, seeds=5, keywords=["film", "movie"])


def texts_as_ids(vocabulary: str, split: str) -> tuple[list[list[int]], int, int]:
    """Film reviews as rows of ids that end with EOS (or were cut off), the size of the vocabulary, and EOS."""
    texts, longest = data.load_human_ratings("movies", split).text, LONGEST[vocabulary]
    if vocabulary == "characters":
        rows = [[ALPHABET.index(c) for c in f"{text.lower()}\n" if c in ALPHABET] for text in texts]
        return [row[:longest] for row in rows], len(ALPHABET), 0
    tokenizer = gpt2.GPT2Policy.from_pretrained("tiny", device="cpu").tokenizer
    rows = [[*tokenizer(text)["input_ids"][1:], tokenizer.eos_token_id] for text in texts]
    return [row[:longest] for row in rows], len(tokenizer), tokenizer.eos_token_id


def pad(rows: list[list[int]], eos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask [B, T]."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [eos] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows])


def chosen(log_pi: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """[B, T, V], [B, T] -> [B, T]."""
    return log_pi.gather(-1, actions[..., None])[..., 0]


@torch.no_grad()
def judge(model: rnn.RNNPolicy, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """On texts it was not trained on: nats a token, accuracy of the likeliest token, of a sampled one, entropy."""
    log_pi = model.logits(ids[:, :0], ids).log_softmax(-1)
    right = chosen(log_pi, ids)
    numbers = dict(
        loss=-right,
        accuracy=(log_pi.argmax(-1) == ids).float(),
        expected_reward=right.exp(),
        entropy=-(log_pi.exp() * log_pi).sum(-1),
    )
    return {name: masked_mean(x, mask).item() for name, x in numbers.items()}


def next_token(vocabulary: str, seed: int, start=0, ent_coef=0.0, kl_coef=0.0, lr=None) -> list[dict]:
    """One run, judged every few steps. The first `start` steps are maximum likelihood, the others go by the reward."""
    s = NEXT_TOKEN
    rows, size, eos = texts_as_ids(vocabulary, "train")
    test_ids, test_mask = pad(texts_as_ids(vocabulary, "validation")[0][: s["test_texts"]], eos)
    torch.manual_seed(seed)
    generator, chooser = torch.Generator().manual_seed(seed), random.Random(seed)
    model, ref, history = rnn.RNNPolicy(size, s["hidden"]), rnn.RNNPolicy(size, s["hidden"]), []
    optimizer = torch.optim.Adam(model.parameters(), lr=lr or s["lr"])
    for step in range(s["steps"] + 1):
        if step % s["every"] == 0:
            history.append(dict(step=step) | judge(model, test_ids, test_mask))
        if step == start:
            ref.load_state_dict(model.state_dict())
        ids, mask = pad(chooser.choices(rows, k=s["batch"]), eos)
        log_pi = model.logits(ids[:, :0], ids).log_softmax(-1)
        if step < start:  # the action is what stands in the text, and it is always right
            actions, paid = ids, mask
        else:  # the action is a guess
            probabilities = log_pi.detach().exp().flatten(0, 1)
            actions = torch.multinomial(probabilities, 1, generator=generator).reshape(ids.shape)
            paid = (actions == ids).float() * mask
        logprobs = chosen(log_pi, actions)
        if kl_coef and step >= start:
            with torch.no_grad():
                ref_logprobs = chosen(ref.logits(ids[:, :0], ids).log_softmax(-1), actions)
            paid = returns.kl_shaped_rewards(paid, logprobs, ref_logprobs, mask, kl_coef)
        loss = losses.reinforce_loss(logprobs, paid, mask) * len(mask) / mask.sum()
        if ent_coef:
            loss = loss - ent_coef * masked_mean(-(log_pi.exp() * log_pi).sum(-1), mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s["max_grad_norm"])
        optimizer.step()
    return history


def prefix_scores(policy: gpt2.GPT2Policy, rollout, prompts: list[str], reward) -> torch.Tensor:
    """[B, T]: the score of what stood in each response before action t; a potential."""
    columns = []
    for t in range(rollout.actions.shape[1]):
        written = rollout.mask * (torch.arange(rollout.mask.shape[1]) < t)
        columns.append(reward(prompts, gpt2.response_texts(policy, dataclasses.replace(rollout, mask=written))))
    return torch.stack(columns, dim=1)


def keyword(paid_at: str, seed: int) -> list[dict]:
    """REINFORCE with the leave-one-out baseline; paid_at: "end" or "token"."""
    s = KEYWORD
    torch.manual_seed(seed)
    generator, chooser = torch.Generator().manual_seed(seed), random.Random(seed)
    policy, reward = gpt2.GPT2Policy.from_pretrained("tiny", device="cpu"), rewards.keyword_reward(s["keywords"])
    optimizer = torch.optim.AdamW(policy.lm.parameters(), lr=s["lr"])
    history, all_prompts = [], data.load_prompts("train")
    for step in range(s["steps"]):
        prompts = chooser.choices(all_prompts, k=s["batch"])
        rollout = gpt2.sample_responses(policy, prompts, s["new_tokens"], generator=generator)
        scores, mask = reward(prompts, gpt2.response_texts(policy, rollout)), rollout.mask
        paid = returns.kl_shaped_rewards(scores, rollout.old_logprobs, rollout.old_logprobs, mask, 0.0)  # at the end
        if paid_at == "token":
            paid = returns.potential_shaped_rewards(paid, prefix_scores(policy, rollout, prompts, reward), mask)
        to_go = returns.discounted_returns(paid, mask)
        advantages = (to_go - baselines.leave_one_out_baseline(to_go, mask)) * mask
        noise = masked_mean(advantages**2, mask).item()
        stats = reinforce_update(policy, optimizer, rollout, advantages, max_grad_norm=1.0)
        history.append(dict(step=step + 1, score=scores.mean().item(), squared_advantage=noise) | stats)
    return history


def main() -> None:
    wanted = sys.argv[1:] or ["next_token", "keyword"]
    jobs = {}
    if "next_token" in wanted:
        runs = [(v, n, s, k) for s in range(NEXT_TOKEN["seeds"]) for (v, n), k in VARIANTS.items()]
        names = [dict(vocabulary=v, variant=n, seed=s) for v, n, s, _ in runs]
        calls = [lambda v=v, s=s, k=k: next_token(v, s, **k) for v, _, s, k in runs]
        jobs["next_token"] = (names, calls, NEXT_TOKEN | {f"{v}, {n}": k for (v, n), k in VARIANTS.items()})
    if "keyword" in wanted:
        names = [dict(paid_at=p, seed=s) for s in range(KEYWORD["seeds"]) for p in ("end", "token")]
        jobs["keyword"] = (names, [lambda n=n: keyword(**n) for n in names], KEYWORD)
    for job, (names, calls, settings) in jobs.items():
        rows = []
        for name, call in zip(names, calls):
            begin = time.perf_counter()
            rows += [name | step for step in call()]
            print(name, {k: round(v, 3) for k, v in rows[-1].items() if isinstance(v, float)}, end=" ")
            print(f"{time.perf_counter() - begin:.0f} s", flush=True)
            write(
                f"04_{job}", rows, __file__, settings, ("transformers",)
            )  # after every run, so that an interruption loses one


if __name__ == "__main__":
    main()
