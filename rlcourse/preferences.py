"""What people's ratings say: how far people agree, and which of two sentences they would prefer."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlcourse.data import HumanRatings


@dataclass(frozen=True)
class Pairs:
    """Comparisons: preferred[i] was preferred to rejected[i], with `probability[i]` that another person agrees, [N].

    A probability of 1 is a hard label. `pairs[rows]` takes a list of row numbers or a slice.
    """

    preferred: list[str]
    rejected: list[str]
    probability: Tensor

    def __post_init__(self):
        if not len(self.preferred) == len(self.rejected) == len(self.probability):
            sizes = len(self.preferred), len(self.rejected), len(self.probability)
            raise ValueError(f"preferred, rejected and probability must be equally long, got {sizes}")
        if not ((self.probability >= 0) & (self.probability <= 1)).all():
            raise ValueError("probability must lie between 0 and 1")

    def __len__(self) -> int:
        return len(self.preferred)

    def __getitem__(self, rows: Sequence[int] | slice) -> "Pairs":
        rows = range(len(self))[rows] if isinstance(rows, slice) else rows
        return Pairs(
            [self.preferred[i] for i in rows], [self.rejected[i] for i in rows], self.probability[torch.tensor([*rows])]
        )


def preference_probability(ratings: Sequence[float], others: Sequence[float]) -> float:
    """How likely a random rater of the first sentence scores it above a random rater of the second; a tie is a half.

    ratings, others: every rater's score. It is the Mann-Whitney statistic as a share.

    >>> preference_probability([2, 3], [1, 2])
    0.875
    """
    a, b = np.asarray(ratings)[:, None], np.asarray(others)[None]
    return float((a > b).mean() + (a == b).mean() / 2)


def rating_pairs(table: HumanRatings, count: int, seed: int = 0, min_gap: float = 0.0) -> Pairs:
    """`count` random pairs of sentences, the one with the higher mean rating preferred.

    probability: the raters' own, by `preference_probability`; below a half where mean and votes disagree. min_gap:
    the means are more than this far apart. Raises ValueError when too few pairs are.
    """
    means, rng = table.mean, random.Random(seed)

    def draw() -> tuple[int, int] | None:
        i, j = rng.sample(range(len(table)), 2)
        i, j = (i, j) if means[i] > means[j] else (j, i)
        return (i, j) if means[i] - means[j] > min_gap else None

    return _pairs(table, draw, count, lambda i, j: preference_probability(table.ratings[i], table.ratings[j]))


def vote_pairs(table: HumanRatings, count: int, seed: int = 0) -> Pairs:
    """`count` random pairs, each decided by one rater of either sentence; equal votes are drawn again.

    This is the cheapest label there is, two single ratings, and it is sometimes wrong about what most people think.
    """
    rng = random.Random(seed)

    def draw() -> tuple[int, int] | None:
        i, j = rng.sample(range(len(table)), 2)
        a, b = rng.choice(table.ratings[i]), rng.choice(table.ratings[j])
        return None if a == b else (i, j) if a > b else (j, i)

    return _pairs(table, draw, count, lambda i, j: 1.0)


def edit_pairs(texts: list[str], seed: int = 0) -> Pairs:
    """Each sentence preferred to what `corrupt` makes of it; sentences that it leaves as they are drop out.

    It stands for an editor at work: the preferred text is the edited one, the rejected text what was there before.
    These are edits by a rule, no person made them.
    """
    kept = [(text, worse) for i, text in enumerate(texts) if (worse := corrupt(text, seed + i)) != text]
    return Pairs([text for text, _ in kept], [worse for _, worse in kept], torch.ones(len(kept)))


def corrupt(text: str, seed: int = 0) -> str:
    """The text with one third of its words (at least one) dropped, doubled, exchanged with the next, or misspelled."""
    rng, words = random.Random(seed), text.split()
    for _ in range(max(1, len(words) // 3)):
        if len(words) < 2:
            break
        i = rng.randrange(len(words) - 1)
        kind = rng.choice(["drop", "double", "exchange", "misspell"])
        if kind == "drop":
            del words[i]
        elif kind == "double":
            words.insert(i, words[i])
        elif kind == "exchange":
            words[i], words[i + 1] = words[i + 1], words[i]
        else:
            k = rng.randrange(len(words[i]))
            words[i] = words[i][:k] + words[i][k + 1 :] + words[i][k]
    return " ".join(words)


def split_half_agreement(ratings: list[list[int]], seed: int = 0) -> tuple[float, float]:
    """How well half of the raters predict the other half: Pearson's r of the halves' means, and for all raters.

    Each sentence's raters are divided at random. The second number is the first stepped up to twice as many raters by
    the formula of Spearman and Brown (1910), 2r / (1 + r): what a second panel of full size would reach.
    """
    rng, halves = random.Random(seed), []
    for scores in ratings:
        shuffled = rng.sample(scores, len(scores))
        middle = len(scores) // 2
        halves.append((np.mean(shuffled[:middle]), np.mean(shuffled[middle:])))
    r = float(np.corrcoef(np.array(halves).T)[0, 1])
    return r, 2 * r / (1 + r)


def one_against_rest(ratings: list[list[int]], seed: int = 0) -> float:
    """Pearson's r between one rater of each sentence, drawn at random, and the mean of all the others."""
    rng, table = random.Random(seed), []
    for scores in ratings:
        i = rng.randrange(len(scores))
        table.append((scores[i], (sum(scores) - scores[i]) / (len(scores) - 1)))
    return float(np.corrcoef(np.array(table).T)[0, 1])


def _pairs(table: HumanRatings, draw, count: int, probability) -> Pairs:
    """`count` accepted draws of (preferred, rejected) row numbers, as Pairs."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if len(table) < 2:
        raise ValueError(f"a pair needs two sentences, the table has {len(table)}")
    rows = []
    for _ in range(1000 + 100 * count):
        if (pair := draw()) is not None:
            rows.append(pair)
        if len(rows) == count:
            chances = torch.tensor([probability(i, j) for i, j in rows])
            return Pairs([table.text[i] for i, _ in rows], [table.text[j] for _, j in rows], chances)
    raise ValueError(f"only {len(rows)} of {count} pairs found: too few sentences are rated differently enough")
