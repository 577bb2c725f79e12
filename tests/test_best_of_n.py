import itertools
import math

import pytest
import torch

from rlcourse.best_of_n import best_of_n_kl_bound, best_of_n_probabilities, sample_best_of_n
from rlcourse.gpt2 import GPT2Policy

P = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05], dtype=torch.float64)
SCORES = {"distinct": [3.0, 1.0, 2.0, 0.0, 5.0], "ties": [3.0, 1.0, 1.0, 0.0, 3.0], "equal": [1.0] * 5}


def by_listing(p, scores, n):
    """Every draw of n texts; among the best of them each copy is as likely as the next."""
    result = [0.0] * len(p)
    for draw in itertools.product(range(len(p)), repeat=n):
        best = max(scores[i] for i in draw)
        winners = [i for i in draw if scores[i] == best]
        for i in winners:
            result[i] += math.prod(p[j] for j in draw) / len(winners)
    return result


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("case", SCORES)
def test_probabilities_are_those_of_every_draw_listed(case, n):
    got = best_of_n_probabilities(P, torch.tensor(SCORES[case]), n)
    assert got.tolist() == pytest.approx(by_listing(P.tolist(), SCORES[case], n), abs=1e-12)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist()) if a > 0)


@pytest.mark.parametrize("n", [1, 2, 4, 64])
def test_the_bound_is_met_by_many_unlike_texts_and_missed_by_few(n):
    many = torch.full((100_000,), 1e-5, dtype=torch.float64)
    exact = kl(best_of_n_probabilities(many, torch.arange(100_000.0), n), many)
    assert exact == pytest.approx(best_of_n_kl_bound(n), abs=1e-3) and exact <= best_of_n_kl_bound(n)
    for scores in SCORES.values():
        assert kl(best_of_n_probabilities(P, torch.tensor(scores), n), P) <= best_of_n_kl_bound(n)


def test_the_bound_by_hand():
    assert best_of_n_kl_bound(1) == 0 and best_of_n_kl_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_impossible_texts_stay_impossible_and_equal_scores_change_nothing():
    p = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)
    assert best_of_n_probabilities(p, torch.tensor([9.0, 1.0, 0.0]), 2).tolist() == [0, 0.75, 0.25]
    torch.testing.assert_close(best_of_n_probabilities(P, torch.ones(5), 7), P)


def test_sampling_keeps_the_best_of_each_prompt():
    policy, calls = GPT2Policy.from_pretrained("tiny", device="cpu"), []

    def reward(prompts, texts):
        calls.append((prompts, texts))
        return torch.tensor([float(len(text)) for text in texts])

    best, scores = sample_best_of_n(policy, ["The film", "A story of"], reward, 3, 5, torch.Generator().manual_seed(0))
    (prompts, texts), *rest = calls
    assert not rest and prompts == ["The film"] * 3 + ["A story of"] * 3
    assert best == [max(texts[:3], key=len), max(texts[3:], key=len)]
    assert scores.tolist() == [len(text) for text in best]


@pytest.mark.parametrize("n", [0, -1, 1.5, None])
def test_n_must_be_a_whole_number(n):
    for call in (lambda: best_of_n_probabilities(P, P, n), lambda: best_of_n_kl_bound(n),
                 lambda: sample_best_of_n(None, ["a"], None, n, 3)):  # fmt: skip
        with pytest.raises(ValueError, match=f"n must be a whole number of at least 1, got {n!r}"):
            call()


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"probabilities and scores must both be \[N\], got \(5,\) and \(4,\)"):
        best_of_n_probabilities(P, torch.ones(4), 2)
    with pytest.raises(ValueError, match=r"got \(1, 5\) and \(1, 5\)"):
        best_of_n_probabilities(P[None], P[None], 2)
