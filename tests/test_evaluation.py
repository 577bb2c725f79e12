"""Metrics against loops, the bootstrap against its theory, perturbations against what they may change."""

import itertools

import pytest
import torch

from rlcourse.evaluation import bootstrap, classification_report, drop_words, interval, lengthen, typos

TEXTS = ["a quiet film about two brothers", "so dull", "Wonderful!", "it is, in the end, a good film"]


def counted(labels, said, positive):
    tp = sum(y == positive and a == positive for y, a in zip(labels, said))
    fp = sum(y != positive and a == positive for y, a in zip(labels, said))
    fn = sum(y == positive and a != positive for y, a in zip(labels, said))
    precision, recall = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_report_of_two_classes_against_loops():
    for labels, said in itertools.product(itertools.product((0, 1), repeat=4), repeat=2):
        found = classification_report(torch.tensor(labels), torch.tensor(said))
        accuracy = sum(y == a for y, a in zip(labels, said)) / 4
        assert [found[k] for k in ("accuracy", "precision", "recall", "f1")] == pytest.approx(
            [accuracy, *counted(labels, said, 1)]
        )


def test_report_of_three_classes_is_the_mean_over_classes(generator):
    labels, said = (torch.randint(3, (50,), generator=generator) for _ in range(2))
    found = classification_report(labels, said, 3)
    by_class = [counted(labels.tolist(), said.tolist(), c) for c in range(3)]
    for name, column in zip(("precision", "recall", "f1"), zip(*by_class)):
        assert found[name] == pytest.approx(sum(column) / 3)
    assert found["accuracy"] == pytest.approx((labels == said).double().mean().item())


def test_precision_and_recall_are_not_swapped():
    found = classification_report(torch.tensor([1, 0, 0, 0]), torch.tensor([1, 1, 1, 1]))
    assert found["precision"] == 0.25 and found["recall"] == 1.0
    assert classification_report(torch.tensor([1, 1]), torch.tensor([0, 0]))["precision"] == 0.0


@pytest.mark.parametrize(
    "labels, said, message",
    [(torch.tensor([0, 1]), torch.tensor([0]), "one shape"), (torch.tensor([0, 2]), torch.tensor([0, 1]), "labels"),
     (torch.tensor([0, 1]), torch.tensor([0.2, 0.7]), "predicted"), (torch.tensor([]), torch.tensor([]), "one shape")],
)  # fmt: skip
def test_wrong_labels_are_named(labels, said, message):
    with pytest.raises(ValueError, match=message):
        classification_report(labels, said)


def test_bootstrap_spread_is_that_of_a_binomial(generator):
    """Accuracy p on N texts has standard error sqrt(p (1 - p) / N)."""
    labels = torch.randint(2, (400,), generator=generator)
    said = torch.where(torch.rand(400, generator=generator) < 0.8, labels, 1 - labels)
    draws = bootstrap(labels, said, draws=2000)
    p = (labels == said).double().mean().item()
    assert draws["accuracy"].std().item() == pytest.approx((p * (1 - p) / 400) ** 0.5, rel=0.06)
    for name, number in classification_report(labels, said).items():
        low, high = interval(draws[name])
        assert low < number < high and draws[name].shape == (2000,)


def test_each_draw_is_a_report_of_its_own(generator):
    labels, said = (torch.randint(3, (30,), generator=generator) for _ in range(2))
    draws = bootstrap(labels, said, 3, draws=5, seed=7)
    chosen = torch.randint(30, (5, 30), generator=torch.Generator().manual_seed(7))
    for k, rows in enumerate(chosen):
        for name, number in classification_report(labels[rows], said[rows], 3).items():
            assert draws[name][k].item() == pytest.approx(number)


def test_differences_are_paired(generator):
    """Two classifiers that differ in one text: the difference hardly varies although each of them does."""
    labels = torch.randint(2, (200,), generator=generator)
    one = torch.where(torch.rand(200, generator=generator) < 0.7, labels, 1 - labels)
    other = one.clone()
    other[0] = 1 - other[0]
    difference = bootstrap(labels, one)["accuracy"] - bootstrap(labels, other)["accuracy"]
    assert difference.std() < bootstrap(labels, one)["accuracy"].std() / 4


def test_interval_of_known_numbers():
    assert interval(torch.arange(101.0), 0.9) == pytest.approx((5, 95))
    with pytest.raises(ValueError, match="level"):
        interval(torch.arange(3.0), 1.0)
    with pytest.raises(ValueError, match="draws"):
        bootstrap(torch.tensor([1]), torch.tensor([1]), draws=0)


def edits(a, b):
    """Damerau-Levenshtein distance (optimal string alignment), the textbook table."""
    d = {(i, -1): i + 1 for i in range(-1, len(a))} | {(-1, j): j + 1 for j in range(-1, len(b))}
    for i, j in itertools.product(range(len(a)), range(len(b))):
        d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i] != b[j]))
        if i and j and a[i] == b[j - 1] and a[i - 1] == b[j]:
            d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a) - 1, len(b) - 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_typo_is_one_edit_and_spares_short_words_and_first_letters(seed):
    words = "an actor says something wonderful about it -- 1999 films".split()
    slipped = typos([" ".join(words)] * 20, rate=1.0, seed=seed)
    changed = 0
    for text in slipped:
        for word, new in zip(words, text.split(), strict=True):
            assert edits(word, new) <= (1 if len(word) > 2 and word.isalpha() else 0) and word[0] == new[0]
            changed += word != new
    assert changed > 0.85 * 20 * 6


def test_rates_and_seeds():
    for perturb in (typos, drop_words):
        assert perturb(TEXTS, 0.0) == TEXTS
        assert perturb(TEXTS * 9, 0.5, seed=1) == perturb(TEXTS * 9, 0.5, seed=1) != perturb(TEXTS * 9, 0.5, seed=2)
        for wrong in (-0.1, 1.1):
            with pytest.raises(ValueError, match="rate"):
                perturb(TEXTS, wrong)
        with pytest.raises(ValueError, match="texts"):
            perturb("one text", 0.5)


def test_dropped_words_leave_an_ordered_rest_of_the_expected_size():
    text = " ".join(f"w{i}" for i in range(1000))
    (short,) = drop_words([text], 0.3)
    kept = [int(word[1:]) for word in short.split()]
    assert kept == sorted(set(kept)) and 640 < len(kept) < 760
    assert drop_words(TEXTS, 1.0) == ["a", "so", "Wonderful!", "it"]


def test_longer_texts_still_hold_the_text():
    longer = lengthen(TEXTS * 10, ["one.", "two."], 3, seed=0)
    for text, new in zip(TEXTS * 10, longer):
        before, after = new.split(text)
        assert len((before + after).split()) == 3 and set((before + after).split()) <= {"one.", "two."}
    assert len({new.index(text) for text, new in zip(TEXTS * 10, longer)}) > 2
    assert lengthen(TEXTS, ["x"], 0) == TEXTS
    with pytest.raises(ValueError, match="fillers"):
        lengthen(TEXTS, [], 1)
