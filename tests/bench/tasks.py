"""The study behind notebook 09: `python tests/bench/tasks.py` writes notebooks/09_{tasks,steps,texts}.csv.

Five tasks. "good": five seeds of supervised training on the few labelled prompts, then PPO on the unlabelled ones
against the task's own reward. Three seeds of each of the others. Controls: "longer", supervised training for longer on
the same few answers instead of PPO; "longer, PPO", PPO after that; "all answers", supervised training on the answers
that PPO never saw. "bad": PPO against a badly designed reward; for the summaries also "bad, good start", from the start
that "good" has, and "bad, KL price", from there and with the KL price that "good" pays. The settings were fixed on a
few earlier runs with seed 0; nothing is chosen per seed. Started again, the study goes on after its last run.
"""

import csv
import io
import random
import time

import torch
from study import FOLDER, write

from rlcourse import rewards, tasks
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.plotting import progress
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.supervised import supervised_update

SETTINGS = {
    "translation": dict(sft_steps=120, sft_lr=2e-3, steps=80, batch=128, lr=6e-4, kl_coef=0.01),
    "summarisation": dict(sft_steps=120, sft_lr=2e-3, steps=80, batch=64, lr=6e-4, kl_coef=0.01),
    "dialogue": dict(sft_steps=120, sft_lr=2e-3, steps=100, batch=64, lr=7e-4, kl_coef=0.02),
    "arithmetic": dict(sft_steps=300, sft_lr=2e-3, steps=80, batch=128, lr=6e-4, kl_coef=0.01),
    "paraphrase": dict(sft_steps=80, sft_lr=1e-3, steps=80, batch=128, lr=5e-4, kl_coef=0.01),
}
BAD = {  # what is different under the bad rewards: no KL price, more room, and two starts that know less
    "translation": dict(kl_coef=0.0, steps=50, room=24),
    "summarisation": dict(kl_coef=0.0, steps=50, room=32, sft_steps=50),
    "dialogue": dict(kl_coef=0.0, steps=50, room=24),
    "arithmetic": dict(kl_coef=0.0, steps=100, room=12, sft_steps=220),
    "paraphrase": dict(kl_coef=0.0, steps=80),
}
SUMMARIES_ONLY = {"bad, good start": ("sft_steps",), "bad, KL price": ("sft_steps", "kl_coef")}  # kept from "good"
SEEDS = {"good": 5, "longer, PPO": 3, "bad": 3, "bad, good start": 3, "bad, KL price": 3, "longer": 3, "all answers": 3}


def no_repeats(prompts: list[str], responses: list[str]) -> torch.Tensor:
    """Minus the share of word pairs which stood earlier in the dialogue, both turns together."""
    return rewards.repetition_penalty(2)(prompts, [p + r for p, r in zip(prompts, responses)])


def metrics_of(task: tasks.Task) -> dict[str, rewards.Reward]:
    """The numbers that are reported, the main one first."""
    exact = {"exact": rewards.exact_match_reward(task.references)}
    match task.name:
        case "translation" | "paraphrase":
            return exact | {"chrF": rewards.chrf_reward(task.references)}
        case "arithmetic":
            return {"number": rewards.number_match_reward(task.references)} | exact
        case "summarisation":
            rouge, coverage = rewards.rouge_l_reward(task.references), rewards.coverage_reward(task.facts)
            return {"ROUGE-L": rouge, "coverage": coverage} | exact
    f1, polite = rewards.token_f1_reward(task.references), rewards.politeness_reward()
    return exact | {"F1": f1, "polite": polite, "topic": tasks.topic_reward(), "no repeats": no_repeats}


def good_reward(task: tasks.Task) -> rewards.Reward:
    """What PPO is paid: scores that a checker can give without showing an answer."""
    m = metrics_of(task)
    match task.name:
        case "translation" | "paraphrase":
            return rewards.combine({"chrF": (1.0, m["chrF"]), "exact": (1.0, m["exact"])})
        case "summarisation":
            return rewards.combine({"ROUGE-L": (1.0, m["ROUGE-L"]), "coverage": (1.0, m["coverage"])})
        case "dialogue":
            weights = {"exact": 1.0, "F1": 0.5, "polite": 0.3, "topic": 0.3, "no repeats": 1.0}
            return rewards.combine({name: (weight, m[name]) for name, weight in weights.items()})
    return m["number"]


def bad_reward(task: tasks.Task) -> rewards.Reward:
    """A reward with a loophole, and one that sounds reasonable."""
    m = metrics_of(task)
    match task.name:
        case "translation":  # complete translations are longer
            length = lambda prompts, responses: torch.tensor([float(len(r)) for r in responses])  # noqa: E731
            return rewards.combine({"chrF": (1.0, m["chrF"]), "length": (0.05, length)})
        case "summarisation":  # a good summary holds the facts
            return m["coverage"]
        case "dialogue":  # polite words are good: count them
            polite = rewards.keyword_reward(["thanks", "welcome", "my pleasure"])
            return rewards.combine({"exact": (1.0, m["exact"]), "polite words": (0.5, polite)})
        case "arithmetic":  # is the answer in it?
            return lambda prompts, responses: torch.tensor(
                [float(task.facts[p][0] in r) for p, r in zip(prompts, responses)]
            )
    sources = {prompt: prompt.removesuffix(" →") for prompt in task.references}
    return rewards.chrf_reward(sources)  # a paraphrase keeps the meaning: be like the source


def supervise(policy: GPT2Policy, task: tasks.Task, prompts: list[str], seed: int, steps: int, lr: float) -> None:
    """Likelihood training on the first reference of the given prompts, 32 at a time."""
    chooser = random.Random(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr)
    for _ in progress(range(steps)):
        batch = chooser.choices(prompts, k=32)
        actions, mask = policy.encode_responses([task.references[prompt][0] for prompt in batch])
        supervised_update(policy, optimizer, policy.encode(batch), actions, mask)


def practise(policy: GPT2Policy, task: tasks.Task, reward, truth, seed: int, s: dict, room: int) -> list[dict]:
    """PPO on the unlabelled prompts; one dict of statistics per iteration, with the true metric beside the score."""
    torch.manual_seed(seed)
    chooser, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ref_policy, cfg, history = policy.frozen_copy(), PPOConfig(), []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=s["lr"], weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=s["steps"])
    for _ in progress(range(s["steps"])):
        prompts = chooser.choices(task.unlabelled, k=s["batch"])
        rollout = sample_responses(policy, prompts, room, generator=generator)
        with torch.no_grad():
            ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        texts = response_texts(policy, rollout)
        scores = reward(prompts, texts)
        token_rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, s["kl_coef"])
        advantages, returns = gae(token_rewards, rollout.values, rollout.mask, gamma=1.0, lam=1.0)
        stats = ppo_update(policy, optimizer, rollout, advantages, returns, cfg)
        schedule.step()
        kl = ((rollout.old_logprobs - ref_logprobs) * rollout.mask).sum(1).mean().item()
        tokens, right = rollout.mask.sum(1).mean().item(), truth(prompts, texts).mean().item()
        history.append(dict(score=scores.mean().item(), truth=right, kl=kl, tokens=tokens, entropy=stats["entropy"]))
    return history


SHOWN = [*range(8), -2, -1]  # of one round through the held-out prompts


def judge(policy: GPT2Policy, task: tasks.Task, scorers: dict, seed: int, room: int) -> tuple[dict, list[str]]:
    """Mean of each score over four responses to every held-out prompt, at temperature 1; ten of the texts."""
    prompts, generator = task.held_out * 4, torch.Generator().manual_seed(1000 + seed)
    rollout = sample_responses(policy, prompts, room, generator=generator)
    texts = response_texts(policy, rollout)
    numbers = {name: f(prompts, texts).mean().item() for name, f in scorers.items()}
    if task.name == "dialogue":
        numbers["played"] = play(policy, task, seed, room)[0]
    return numbers | {"tokens": rollout.mask.sum(1).mean().item()}, [texts[: len(task.held_out)][i] for i in SHOWN]


def play(policy: GPT2Policy, task: tasks.Task, seed: int, room: int) -> tuple[float, list[str]]:
    """Both turns by the policy itself: how often the second answer holds its fact, and the first ten dialogues."""
    prompts, generator = [p for p in task.held_out if p.count("?") == 2], torch.Generator().manual_seed(2000 + seed)
    first = [p.split("?")[0] + "?" for p in prompts]
    follow = [" And" + p.split(" And")[1] for p in prompts]
    answers = response_texts(policy, sample_responses(policy, first, room, generator=generator))
    second = [a + b + c for a, b, c in zip(first, answers, follow)]
    texts = response_texts(policy, sample_responses(policy, second, room, generator=generator))
    right = rewards.coverage_reward(task.facts)(prompts, texts).mean().item()
    return right, [a + b for a, b in zip(second, texts)][:10]


def one_run(task: tasks.Task, variant: str, seed: int) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows for the three files."""
    s, metrics = dict(SETTINGS[task.name]), metrics_of(task)
    s |= BAD[task.name] if variant.startswith("bad") else {}
    reward = bad_reward(task) if variant.startswith("bad") else good_reward(task)
    if variant in SUMMARIES_ONLY:
        s |= {key: SETTINGS[task.name][key] for key in SUMMARIES_ONLY[variant]}
    room = s.get("room", task.max_new_tokens)
    scorers, label = metrics | {"reward": reward}, dict(task=task.name, variant=variant, seed=seed)
    policy, start, history = tasks.new_policy(task, seed), time.perf_counter(), []
    supervise(policy, task, task.labelled, seed, s["sft_steps"], s["sft_lr"])
    if variant == "longer, PPO":
        supervise(policy, task, task.labelled, seed + 100, 3 * s["sft_steps"], s["sft_lr"])
    middle = time.perf_counter()
    before, texts_before = judge(policy, task, scorers, seed, room)
    talks = [play(policy, task, seed, room)[1]] if task.name == "dialogue" else []
    again = time.perf_counter()
    if variant not in ("longer", "all answers"):
        history = practise(policy, task, reward, next(iter(metrics.values())), seed, s, room)
    else:
        prompts = task.labelled if variant == "longer" else task.labelled + task.unlabelled
        supervise(policy, task, prompts, seed + 100, 3 * s["sft_steps"], s["sft_lr"])
    seconds = dict(sft_seconds=middle - start, ppo_seconds=time.perf_counter() - again)
    after, texts_after = judge(policy, task, scorers, seed, room)
    rows = [label | dict(metric=name, before=before[name], after=after[name]) | seconds for name in before]
    steps = [label | dict(step=i + 1) | h for i, h in enumerate(history)]
    columns = zip([task.held_out[i] for i in SHOWN], texts_before, texts_after)
    texts = [label | dict(prompt=p, reference=task.references[p][0], before=b, after=a) for p, b, a in columns]
    if talks:
        talks = zip(*talks, play(policy, task, seed, room)[1])
        texts += [label | dict(prompt="(played)", reference="", before=b, after=a) for b, a in talks]
    return rows, steps, texts if seed == 0 else []


def stored(file: str) -> list[dict]:
    """What an interrupted study has written already."""
    path = FOLDER / f"09_{file}.csv"
    if not path.exists():
        return []
    table = path.read_bytes().decode("utf-8").split("\n")
    return list(csv.DictReader(io.StringIO("\n".join(line for line in table if not line.startswith("# ")), newline="")))


def main() -> None:
    files = {file: stored(file) for file in ("tasks", "steps", "texts")}
    done = {(row["task"], row["variant"], int(row["seed"])) for row in files["tasks"]}
    plan = [(s, v, n) for s in range(max(SEEDS.values())) for v, count in SEEDS.items() if s < count for n in SETTINGS]
    for seed, variant, name in plan:
        if (name, variant, seed) in done or (variant in SUMMARIES_ONLY and name != "summarisation"):
            continue
        found = one_run(getattr(tasks, name)(), variant, seed)
        moved = {r["metric"]: f"{r['before']:.3f} to {r['after']:.3f}" for r in found[0]}
        print(variant, name, seed, moved, [round(found[0][0][k]) for k in ("sft_seconds", "ppo_seconds")], flush=True)
        for file, rows in zip(files, found):
            files[file] += rows
            if files[file]:
                about = f"{SETTINGS}, bad rewards: {BAD}, {PPOConfig()}"
                write(f"09_{file}", files[file], __file__, about, ("transformers",))


if __name__ == "__main__":
    main()
