"""The study behind notebook 10: `python tests/bench/classification.py` writes notebooks/10_{curves,predictions}.csv.

The notebook's small BERT, learned from labels, from rewards and from logged clicks. First a few learning rates for
each method, one run each; the best on the 400 validation sentences is used by all seeds. Then, seed by seed, every
variant. The step to report is chosen on validation too. Test labels are used for counting only. A run that is in the
files already is not repeated, so that an interrupted study goes on where it was.
"""

import random
import time
from dataclasses import dataclass, replace
from functools import cache

import torch
from study import FOLDER, write
from torch.nn import functional as F

from rlcourse.classification import (
    bandit_update,
    cost_rewards,
    epoch_batches,
    expected_reward_loss,
    f1_rewards,
    load_classifier,
    logged_reward_loss,
    sampled_reward_loss,
)
from rlcourse.data import load_human_ratings, load_study
from rlcourse.evaluation import classification_report, drop_words, lengthen, typos
from rlcourse.losses import entropy

SEEDS, BATCH, CHECK_EVERY = 5, 64, 4704  # texts between two looks at validation and test
EDGES = torch.tensor([-1.9, -1.2, 1.2, 2.0])  # of the five classes: about a fifth of the sentences each
COSTS = torch.tensor([[0.0, 1.0], [0.5, 0.0]])  # to praise a bad film costs twice as much as to blame a good one
OPTIMISM, CLICK = 0.85, (0.2, 0.8)  # the old policy says "positive" so often; clicks on wrong and on right labels
BONUS = 0.3  # what a nat of entropy earns
RATES = {"labels": (3e-4, 1e-3, 3e-3, 1e-2), "exact": (3e-4, 1e-3, 3e-3), "no baseline": (3e-4, 1e-3, 3e-3),
         "baseline": (3e-4, 1e-3, 3e-3), "no bonus": (3e-4, 1e-3, 3e-3)}  # fmt: skip


@dataclass
class Run:
    variant: str
    method: str = "labels"  # a key of RATES, or logged: naive, weighted, normalised
    reward: str = "right"  # right, cost or f1
    num_labels: int = 2
    epochs: float = 2
    texts: int = 9405
    lr: float = 0.0
    dropout: float = 0.0
    weight_decay: float = 0.01
    augment: bool = False
    robust: bool = False  # also predict the perturbed test sets


def variants() -> list[Run]:
    """What each seed runs; the bandits get three times as many texts as the labels."""
    b = dict(method="baseline", epochs=6)
    main = [Run("labels", robust=True), Run("labels, long", epochs=6), Run("exact", "exact"),
            Run("baseline", **b, robust=True), Run("no baseline", "no baseline", epochs=6),
            Run("no bonus", "no bonus", epochs=6), Run("costs", reward="cost", **b),
            Run("f1", reward="f1", **b)]  # fmt: skip
    logged = [Run(f"logged {how}", f"logged {how}", epochs=3) for how in ("naive", "weighted", "normalised")]
    five = [
        Run("five, labels", num_labels=5),
        Run("five, labels, long", num_labels=5, epochs=6),
        Run("five, baseline", num_labels=5, **b),
    ]
    few = [Run("300 labels", texts=300, epochs=20), Run("4000 labels", texts=4000, epochs=3)]
    small = dict(texts=1200, epochs=10)
    regular = [Run("1200 labels", **small), Run("1200, dropout", **small, dropout=0.3),
               Run("1200, weight decay", **small, weight_decay=3.0), Run("1200, exact", "exact", **small),
               Run("1200, baseline", "baseline", **small)]  # fmt: skip
    return main + logged + five + few + regular + [Run("augmented", augment=True, robust=True)]


@cache
def load(split: str):
    table = load_human_ratings("movies", split)
    mean = torch.tensor(table.mean)
    return table.text, {2: (mean > 0).long(), 5: torch.bucketize(mean, EDGES.double())}


@cache
def encoded(kind: str):
    """Rows of the train, validation or test texts, or of a perturbed test set."""
    texts = load(kind)[0] if kind in ("train", "validation", "test") else perturbed(load("test")[0])[kind]
    return load_classifier("small", tokenizer=tokenizer()).encode(texts)


@cache
def tokenizer():
    """The same for all runs."""
    return load_classifier("small", texts=load("train")[0], device="cpu").tokenizer


@cache
def neutral(split: str) -> list[str]:
    """Sentences of newspaper editorials that people found neither good nor bad."""
    table = load_human_ratings("editorials", split)
    return [text for text, mean in zip(table.text, table.mean) if abs(mean) < 0.2 and len(text.split()) < 25]


class F1SoFar:
    """F1 rewards at the F1 of the last few hundred choices."""

    def __init__(self):
        self.tp, self.wrong = 1.0, 1.0

    def __call__(self, labels):
        table = f1_rewards(labels, 2 * self.tp / (2 * self.tp + self.wrong))

        def reward_of(actions):
            hits, wrong = ((actions == 1) & (labels == 1)).sum().item(), (actions != labels).sum().item()
            self.tp, self.wrong = 0.9 * self.tp + hits, 0.9 * self.wrong + wrong
            return table.gather(1, actions[:, None])[:, 0]

        return reward_of


def reward_table(run: Run, labels):
    return cost_rewards(labels, COSTS) if run.reward == "cost" else F.one_hot(labels, run.num_labels).float()


def one_step(run, model, optimizer, rows, labels, log, f1):
    """One update on a batch; returns nothing, like the two lines of PyTorch that it mostly is."""
    if run.method in ("baseline", "no baseline", "no bonus"):
        table = reward_table(run, labels)
        pay = f1(labels) if run.reward == "f1" else lambda a: table.gather(1, a[:, None])[:, 0]
        bonus = 0.0 if run.method == "no bonus" else BONUS
        bandit_update(model, optimizer, rows, pay, None if run.method == "no baseline" else "others", bonus)
        return
    logits = model(rows)
    if run.method == "labels":
        loss = F.cross_entropy(logits, labels)
    elif run.method == "exact":
        loss = expected_reward_loss(logits, reward_table(run, labels))
    elif run.method == "logged naive":
        loss = sampled_reward_loss(logits, log[0], log[1])
    else:
        loss = logged_reward_loss(logits, *log, self_normalised=run.method == "logged normalised")
    if run.method in ("exact", "logged weighted", "logged normalised"):
        loss = loss - BONUS * entropy(logits[:, None], torch.ones(len(logits), 1)).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def train(run: Run, seed: int) -> tuple[list[dict], dict[str, torch.Tensor], float]:
    """The curve, the test predictions at the best step on validation, and the CPU seconds of the updates."""
    rng = random.Random(seed)
    (texts, labels), (_, y_val), (_, y_test) = (load(s) for s in ("train", "validation", "test"))
    train_rows, val, test = (encoded(s) for s in ("train", "validation", "test"))
    torch.manual_seed(seed)
    model = load_classifier("small", run.num_labels, tokenizer=tokenizer(), dropout=run.dropout, device="cpu")
    chosen = rng.sample(range(len(texts)), run.texts)
    texts, labels = [texts[i] for i in chosen], labels[run.num_labels][chosen]
    y_val, y_test = y_val[run.num_labels], y_test[run.num_labels]
    log = old_policy(labels, seed) if run.method.startswith("logged") else None
    rows, f1, optimizer = [train_rows[i] for i in chosen], F1SoFar(), torch.optim.AdamW(
        model.parameters(), lr=run.lr, weight_decay=run.weight_decay, fused=True)  # fmt: skip
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, total_iters=50)
    model.train()
    seen, next_look, seconds, best, curve, predictions = 0, 0, 0.0, -9.0, [], {}
    budget = run.epochs * run.texts
    look_every = min(CHECK_EVERY, 2 * run.texts)
    while seen < budget:
        if run.augment:
            rows = model.encode(augmented(texts, rng.randrange(10**6)))
        for i in epoch_batches(rows, BATCH, rng):
            start = time.process_time()
            some = None if log is None else tuple(x[i] for x in log)
            one_step(run, model, optimizer, [rows[j] for j in i], labels[i], some, f1)
            warm_up.step()
            seconds, seen = seconds + time.process_time() - start, seen + len(i)
            if seen >= next_look + look_every or seen >= budget:
                next_look = seen - seen % look_every
                said_val, said_test = model.predict(val).argmax(1), model.predict(test).argmax(1)
                point = dict(seen=seen, seconds=seconds, validation=accuracy(said_val, y_val),
                             test=accuracy(said_test, y_test), train=float("nan"))  # fmt: skip
                if run.texts <= 1200:
                    point["train"] = accuracy(model.predict(rows).argmax(1), labels)
                curve.append(point)
                if (score := judged(run, said_val, y_val)) > best:
                    best, predictions = score, {"test": said_test}
                    if run.robust:
                        predictions |= {k: model.predict(encoded(k)).argmax(1) for k in ("typos", "dropped", "longer")}
    return curve, predictions, seconds


def accuracy(said, labels) -> float:
    return (said == labels).float().mean().item()


def judged(run: Run, said, labels) -> float:
    if run.reward == "f1":
        return classification_report(labels, said)["f1"]
    return reward_table(run, labels).gather(1, said[:, None]).mean().item()


def old_policy(labels, seed):
    """One logged label for each text, the click it got, and its propensity."""
    generator = torch.Generator().manual_seed(1000 + seed)
    actions = (torch.rand(len(labels), generator=generator) < OPTIMISM).long()
    clicks = torch.rand(len(labels), generator=generator) < torch.tensor(CLICK)[(actions == labels).long()]
    return actions, clicks.float(), torch.where(actions == 1, OPTIMISM, 1 - OPTIMISM)


def augmented(texts, seed):
    """A third of the texts with typos, a third with words dropped, a third longer."""
    kinds = [typos(texts, 0.3, seed), drop_words(texts, 0.3, seed), lengthen(texts, neutral("train"), 2, seed)]
    return [kinds[(i + seed) % 3][i] for i in range(len(texts))]


def perturbed(texts) -> dict[str, list[str]]:
    """The three perturbed test sets, always the same."""
    fillers = neutral("test")
    return {"typos": typos(texts, 0.3), "dropped": drop_words(texts, 0.3), "longer": lengthen(texts, fillers, 2)}


def main() -> None:
    tables = {"curves": [], "predictions": []}
    for name, rows in tables.items():
        if (FOLDER / f"10_{name}.csv").exists():
            rows += load_study(FOLDER / f"10_{name}.csv")[1]
    done = {(row["variant"], row["lr"], row["seed"]) for row in tables["curves"]}

    def finish(run: Run, seed: int) -> None:
        if (run.variant, float(f"{run.lr:.5g}"), float(seed)) in done:
            return
        curve, predictions, seconds = train(run, seed)
        head = dict(variant=run.variant, lr=run.lr, seed=seed)
        tables["curves"].extend(head | point for point in curve)
        for name, said in predictions.items():
            tables["predictions"].append(head | dict(texts=name, said="".join("abcde"[a] for a in said.tolist())))
        settings = f"batch {BATCH}, bonus {BONUS}, costs {COSTS.tolist()}, log {OPTIMISM}, {CLICK}, rates {RATES}"
        for name, rows in tables.items():
            write(f"10_{name}", rows, __file__, settings, ("transformers", "tokenizers"))
        top = max(p["validation"] for p in curve)
        print(f"{run.variant:24} lr {run.lr:g} seed {seed}: validation {top:.3f}, {seconds:.0f} s", flush=True)

    best_rate = {}
    for method, rates in RATES.items():
        for lr in rates:
            finish(Run(f"rate, {method}", method, lr=lr, epochs=2 if method in ("labels", "exact") else 3), 0)
        rows = [row for row in tables["curves"] if row["variant"] == f"rate, {method}"]
        best_rate[method] = max(rows, key=lambda row: row["validation"])["lr"]
    for seed in range(SEEDS):
        for run in variants():
            finish(replace(run, lr=best_rate[run.method if run.method in best_rate else "labels"]), seed)


if __name__ == "__main__":
    main()
