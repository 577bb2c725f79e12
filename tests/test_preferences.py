"""Agreement and pairs, against counting by hand and raters whose noise is known."""

import random
from itertools import product

import numpy as np
import pytest
import torch

from rlcourse.data import HumanRatings, load_human_ratings
from rlcourse.preferences import (
    Pairs,
    corrupt,
    edit_pairs,
    one_against_rest,
    preference_probability,
    rating_pairs,
    split_half_agreement,
    vote_pairs,
)


def table_of(*ratings):
    n = len(ratings)
    return HumanRatings([f"sentence {i}" for i in range(n)], [list(r) for r in ratings], ["x"] * n, ["train"] * n)


def noisy_raters(sentences=3000, raters=8, noise=1.0, seed=0):
    """Ratings = a true value of variance 1 + noise of every rater: all correlations are known."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(sentences, 1))
    return (truth + noise * rng.normal(size=(sentences, raters))).tolist()


# -- agreement ------------------------------------------------------------------------------------------------------


def test_split_half_is_the_reliability_of_half_a_panel():
    # the mean of k raters has variance 1 + noise^2 / k, two such means share the variance 1
    half, full = split_half_agreement(noisy_raters(noise=1.5), seed=1)
    assert half == pytest.approx(1 / (1 + 1.5**2 / 4), abs=0.03)
    assert full == pytest.approx(1 / (1 + 1.5**2 / 8), abs=0.03)


def test_one_against_rest_is_the_correlation_of_one_rater_with_seven():
    expected = 1 / np.sqrt((1 + 1.5**2) * (1 + 1.5**2 / 7))
    assert one_against_rest(noisy_raters(noise=1.5), seed=1) == pytest.approx(expected, abs=0.03)


def test_raters_who_always_agree_or_always_differ():
    same = [[k] * 6 for k in range(-4, 5)]
    assert split_half_agreement(same) == pytest.approx((1, 1)) and one_against_rest(same) == pytest.approx(1)
    quarrel = [[k, -k] for k in range(1, 5)] * 50 + [[0, 1]]
    assert split_half_agreement(quarrel)[0] < -0.9 and one_against_rest(quarrel) < -0.9


def test_one_against_rest_leaves_the_rater_out():
    # the mean of all would contain the rater and could not be uncorrelated with him
    rng = np.random.default_rng(0)
    assert abs(one_against_rest(rng.normal(size=(4000, 4)).tolist())) < 0.05


def test_people_agree_with_people():
    ratings = load_human_ratings("movies").ratings
    half, full = split_half_agreement(ratings)
    assert half == pytest.approx(0.97, abs=0.005) and full > half > one_against_rest(ratings) > 0.8


def test_agreement_depends_on_its_seed_only():
    ratings = noisy_raters(50)
    random.seed(5)
    first = split_half_agreement(ratings, 2), one_against_rest(ratings, 2)
    assert first == (split_half_agreement(ratings, 2), one_against_rest(ratings, 2))
    assert first != (split_half_agreement(ratings, 3), one_against_rest(ratings, 3))


# -- pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "a, b, expected",
    [([1], [0], 1), ([0], [1], 0), ([2], [2], 0.5), ([2, 3], [1, 2], 0.875), ([0, 4], [1, 1, 1], 0.5)],
)
def test_preference_probability_counts_pairs_of_raters(a, b, expected):
    assert preference_probability(a, b) == pytest.approx(expected)
    counted = [(x > y) + (x == y) / 2 for x, y in product(a, b)]
    assert preference_probability(a, b) == pytest.approx(sum(counted) / len(counted))
    assert preference_probability(b, a) == pytest.approx(1 - expected)


def test_rating_pairs_prefer_the_higher_mean():
    table = load_human_ratings("movies", "validation")
    mean, ratings = dict(zip(table.text, table.mean)), dict(zip(table.text, table.ratings))
    pairs = rating_pairs(table, 300, seed=1, min_gap=1.0)
    assert len(pairs) == 300 == len(set(zip(pairs.preferred, pairs.rejected)))
    for a, b, p in zip(pairs.preferred, pairs.rejected, pairs.probability.tolist()):
        assert mean[a] - mean[b] > 1.0
        assert p == pytest.approx(preference_probability(ratings[a], ratings[b]))
    close = rating_pairs(table, 300)
    gaps = [mean[a] - mean[b] for a, b in zip(close.preferred, close.rejected)]
    assert 0 < min(gaps) < 0.2, "without min_gap close pairs are drawn too"


def test_rating_pairs_never_pair_equals():
    pairs = rating_pairs(table_of([1, 1], [1, 1], [3, 3]), 40)
    assert set(zip(pairs.preferred, pairs.rejected)) == {("sentence 2", "sentence 0"), ("sentence 2", "sentence 1")}


def test_vote_pairs_follow_single_raters():
    # 3 votes of 4 against, means the other way round: a single vote is often wrong about the mean
    table = table_of([4, 0, 0, 0], [0.5, 0.5, 0.5, 0.5])
    pairs = vote_pairs(table, 4000, seed=1)
    first = np.mean([text == "sentence 0" for text in pairs.preferred])
    assert first == pytest.approx(0.25, abs=0.03) and (pairs.probability == 1).all()
    with pytest.raises(ValueError, match="pairs found"):
        vote_pairs(table_of([1, 1], [1, 1]), 1)


def test_pairs_are_drawn_by_their_seed():
    table = load_human_ratings("movies", "validation")
    for draw in (rating_pairs, vote_pairs):
        assert (
            draw(table, 20, seed=4).preferred == draw(table, 20, seed=4).preferred != draw(table, 20, seed=5).preferred
        )


def test_corrupt_is_deterministic_and_does_harm():
    texts = load_human_ratings("movies", "validation").text[:100]
    changed = [corrupt(text, i) for i, text in enumerate(texts)]
    assert changed == [corrupt(text, i) for i, text in enumerate(texts)]
    assert sum(a != b for a, b in zip(texts, changed)) >= 95
    kept = [len(set(a.split()) & set(b.split())) / len(set(a.split())) for a, b in zip(texts, changed)]
    assert 0.6 < np.mean(kept) < 0.98, "most of a sentence stays"
    assert corrupt("word") == "word" and corrupt("") == ""


def test_corrupt_knows_its_four_ways():
    seen = {corrupt("ab cd ef", seed) for seed in range(300)}
    assert {"cd ef", "ab ab cd ef", "cd ab ef", "ba cd ef"} <= seen


def test_edit_pairs_prefer_the_original():
    texts = ["one two three four", "single", "five six seven eight"]
    pairs = edit_pairs(texts, seed=1)
    assert "single" not in pairs.preferred and (pairs.probability == 1).all()
    for text, worse in zip(pairs.preferred, pairs.rejected):
        assert text in texts and worse not in texts


def test_pairs_can_be_picked():
    pairs = Pairs(["a", "b", "c"], ["d", "e", "f"], torch.tensor([1.0, 0.5, 0.0]))
    some = pairs[[2, 0]]
    assert (some.preferred, some.rejected, some.probability.tolist()) == (["c", "a"], ["f", "d"], [0.0, 1.0])
    assert pairs[:2].rejected == ["d", "e"] and len(pairs[1:]) == 2


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Pairs(["a"], ["b", "c"], torch.ones(1)), r"equally long, got \(1, 2, 1\)"),
        (lambda: Pairs(["a"], ["b"], torch.tensor([1.5])), "between 0 and 1"),
        (lambda: Pairs(["a"], ["b"], torch.tensor([float("nan")])), "between 0 and 1"),
        (lambda: rating_pairs(table_of([1], [2]), 0), "count must be at least 1, got 0"),
        (lambda: rating_pairs(table_of([1]), 1), "needs two sentences, the table has 1"),
        (lambda: rating_pairs(table_of([1], [2]), 1, min_gap=3), "only 0 of 1 pairs found"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
