"""Ridge regression on a bag of words: what a reward model must beat, and a judge of another kind than a network."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


class BagOfWords:
    """Ridge regression on weighted counts of words and word pairs: a reward of another class than a neural network.

    Counts are weighted by log(N / texts that hold the word) and each text's vector has length 1, so neither common
    words nor long texts dominate. `rate(texts)` gives [N]; called with prompts and responses it is a reward.
    """

    def __init__(self, texts: list[str], ratings: Sequence[float], penalty: float = 1.0, min_count: int = 2):
        """Solve for the weights by conjugate gradients. A word counts if it stands in `min_count` texts."""
        found = Counter(gram for text in texts for gram in set(_grams(text)))
        kept = [gram for gram, count in found.items() if count >= min_count]
        self.column = {gram: i for i, gram in enumerate(kept)}
        self.idf = [math.log(len(texts) / found[gram]) for gram in kept]
        y = torch.as_tensor(np.asarray(ratings), dtype=torch.float64)
        self.mean, X = y.mean(), self._features(texts)
        Xt = X.T.coalesce()
        w = torch.zeros(len(kept), dtype=torch.float64)
        residual = Xt @ (y - self.mean)
        direction, size = residual.clone(), residual @ residual
        start = size
        while size > 1e-12 * start:
            image = Xt @ (X @ direction) + penalty * direction
            step = size / (direction @ image)
            w, residual = w + step * direction, residual - step * image
            size, old = residual @ residual, size
            direction = residual + size / old * direction
        self.weights = w

    def _features(self, texts: list[str]) -> Tensor:
        """[N, words] sparse: each row has length 1, or 0 where no word is known."""
        indices, entries = ([], []), []
        for i, text in enumerate(texts):
            counts = Counter(self.column[gram] for gram in _grams(text) if gram in self.column)
            weighted = [count * self.idf[j] for j, count in counts.items()]
            norm = math.hypot(*weighted) or 1.0
            indices[0].extend([i] * len(counts))
            indices[1].extend(counts)
            entries += [x / norm for x in weighted]
        shape = len(texts), len(self.column)
        return torch.sparse_coo_tensor(indices, entries, shape, dtype=torch.float64, check_invariants=True).coalesce()

    def rate(self, texts: list[str]) -> Tensor:
        """The predicted mean rating of each text, [N]."""
        return (self._features(texts) @ self.weights + self.mean).float()

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        return self.rate([p + r for p, r in zip(prompts, responses, strict=True)])


def _grams(text: str) -> list[str]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return words + [" ".join(pair) for pair in pairwise(words)]
