"""The bag of words, against the normal equations solved densely on features counted another way."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from rlcourse.bag_of_words import BagOfWords
from rlcourse.data import load_human_ratings

TEXTS = ["a good film", "a bad film", "good good fun", "a dull, bad film!", "fun", "a film"]
RATINGS = [2.0, -2.0, 3.0, -3.0, 1.5, 0.0]


def dense_features(texts, vocabulary, idf):
    rows = []
    for text in texts:
        for mark in ",!":
            text = text.replace(mark, f" {mark} ")
        words = text.lower().split()
        grams = words + [f"{a} {b}" for a, b in pairwise(words)]
        row = np.array([grams.count(gram) * idf[gram] for gram in vocabulary])
        rows.append(row / (np.linalg.norm(row) or 1))
    return np.array(rows)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_it_is_ridge_regression(penalty):
    model = BagOfWords(TEXTS, RATINGS, penalty=penalty)
    texts_with = {"a": 4, "good": 2, "bad": 2, "fun": 2, "film": 4, "bad film": 2}  # counted by eye; two texts or more
    assert set(model.column) == set(texts_with)
    idf = {gram: math.log(6 / count) for gram, count in texts_with.items()}
    X, y = dense_features(TEXTS, list(model.column), idf), np.array(RATINGS)
    w = np.linalg.solve(X.T @ X + penalty * np.eye(X.shape[1]), X.T @ (y - y.mean()))
    new = ["a good fun film", "bad bad good", "unheard of", ""]
    expected = dense_features(new, list(model.column), idf) @ w + y.mean()
    assert model.rate(new).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert model.rate(["unheard of"]).item() == pytest.approx(y.mean(), abs=1e-6)


def test_as_a_reward_it_reads_prompt_and_response():
    model = BagOfWords(TEXTS, RATINGS)
    scores = model(["a good", "a bad"], [" film", " film"])
    assert scores.tolist() == pytest.approx(model.rate(["a good film", "a bad film"]).tolist())
    assert scores[0] > 0 > scores[1] and scores.dtype == torch.float32
    with pytest.raises(ValueError):
        model(["one"], ["a", "b"])


def test_repeating_a_word_does_not_pay_without_end():
    model = BagOfWords(TEXTS, RATINGS)
    assert model.rate(["fun " * 50]).item() == pytest.approx(model.rate(["fun"]).item(), abs=1e-5)


@pytest.mark.slow
def test_it_predicts_people():
    train, test = load_human_ratings("all", "train"), load_human_ratings("movies", "test")
    predicted = BagOfWords(train.text, train.mean).rate(test.text)
    assert np.corrcoef(predicted, test.mean)[0, 1] > 0.68
