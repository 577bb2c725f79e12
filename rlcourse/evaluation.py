"""Judging a classifier: four metrics, how sure we may be of them, and texts as people really type them."""

import random
import string

import torch
from torch import Tensor


def classification_report(labels: Tensor, predicted: Tensor, num_labels: int = 2) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of predicted labels; labels, predicted: [N] long.

    With two labels the last three are those of class 1, with more their plain mean over the classes ("macro").

        precision = TP / (TP + FP)    recall = TP / (TP + FN)    F1 = 2 TP / (2 TP + FP + FN)

    A ratio without a denominator counts 0: a class that is never predicted has precision 0.
    """
    return {name: values.item() for name, values in _report(_confusion(labels, predicted, num_labels)).items()}


def bootstrap(
    labels: Tensor, predicted: Tensor, num_labels: int = 2, draws: int = 1000, seed: int = 0
) -> dict[str, Tensor]:
    """The same four numbers on `draws` test sets drawn with replacement from the N texts: {name: [draws]}.

    After Efron (1979). Two calls with one seed and one N draw the same texts, so that the difference of two
    classifiers can be taken draw by draw, which is much less uncertain than the two apart.
    """
    _confusion(labels, predicted, num_labels)  # looks at the arguments
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    chosen = torch.randint(len(labels), (draws, len(labels)), generator=torch.Generator().manual_seed(seed))
    cells = (labels * num_labels + predicted)[chosen]  # [draws, N], which cell of the confusion matrix
    cells = cells + num_labels**2 * torch.arange(draws)[:, None]
    counts = torch.bincount(cells.flatten(), minlength=draws * num_labels**2)
    return _report(counts.reshape(draws, num_labels, num_labels))


def interval(samples: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap samples [draws]: the percentile interval."""
    if samples.ndim != 1 or not 0 < level < 1:
        raise ValueError(f"expected samples [draws] and level in (0, 1), got {tuple(samples.shape)} and {level}")
    low, high = (
        samples.double().quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    )
    return low, high


def _confusion(labels: Tensor, predicted: Tensor, num_labels: int) -> Tensor:
    """Counts [A, A]: row = true label, column = predicted."""
    if labels.ndim != 1 or predicted.shape != labels.shape or not len(labels):
        shapes = f"{tuple(labels.shape)} and {tuple(predicted.shape)}"
        raise ValueError(f"labels and predicted must be of one shape [N], got {shapes}")
    for name, x in dict(labels=labels, predicted=predicted).items():
        if x.is_floating_point() or not ((x >= 0) & (x < num_labels)).all():
            raise ValueError(f"{name} must be whole numbers from 0 to {num_labels - 1}")
    return torch.bincount(labels * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def _report(counts: Tensor) -> dict[str, Tensor]:
    """The four metrics of confusion counts [..., A, A]."""
    counts = counts.double()
    hits, true, said = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)  # [..., A]
    found = dict(precision=_ratio(hits, said), recall=_ratio(hits, true), f1=_ratio(2 * hits, said + true))
    one = (lambda x: x[..., 1]) if counts.shape[-1] == 2 else (lambda x: x.mean(-1))
    return dict(accuracy=hits.sum(-1) / true.sum(-1)) | {name: one(x) for name, x in found.items()}


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp(min=1), 0)


def typos(texts: list[str], rate: float, seed: int = 0) -> list[str]:
    """Each word of three letters or more gets, with probability `rate`, one slip of the fingers.

    Two neighbouring letters swapped, one left out, one doubled, or one replaced; the first letter stays.
    """
    rng = _generator(texts, rate, seed)

    def slip(word: str) -> str:
        if len(word) < 3 or not word.isalpha() or rng.random() >= rate:
            return word
        i, kind = rng.randrange(1, len(word)), rng.randrange(4)
        if kind == 0:
            i = min(i, len(word) - 2)
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        return word[:i] + ("", word[i] * 2, rng.choice(string.ascii_lowercase))[kind - 1] + word[i + 1 :]

    return [" ".join(map(slip, text.split())) for text in texts]


def drop_words(texts: list[str], rate: float, seed: int = 0) -> list[str]:
    """Each word is left out with probability `rate`; at least one word of a text stays."""
    rng, kept = _generator(texts, rate, seed), []
    for text in texts:
        words = text.split()
        some = [word for word in words if rng.random() >= rate]
        kept.append(" ".join(some or words[:1]))
    return kept


def lengthen(texts: list[str], fillers: list[str], count: int, seed: int = 0) -> list[str]:
    """`count` sentences drawn from `fillers` stand before or after each text, each side equally likely."""
    rng = _generator(texts, 0.0, seed)
    if isinstance(fillers, str) or not fillers or count < 0:
        raise ValueError(f"fillers must be a list of at least one string and count 0 or more, got {fillers!r}, {count}")
    longer = []
    for text in texts:
        for filler in rng.choices(fillers, k=count):
            text = f"{filler} {text}" if rng.random() < 0.5 else f"{text} {filler}"
        longer.append(text)
    return longer


def _generator(texts: list[str], rate: float, seed: int) -> random.Random:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be a list of strings, got {texts!r}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate}")
    return random.Random(seed)
