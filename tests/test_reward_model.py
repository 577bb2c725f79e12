"""Reward models: losses and measures against closed forms, the head against a plain forward pass of one text."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import LlamaConfig, LlamaModel

from rlcourse.data import load_human_ratings
from rlcourse.gpt2 import GPT2Policy
from rlcourse.losses import bradley_terry_loss
from rlcourse.preferences import Pairs, edit_pairs, rating_pairs
from rlcourse.reward_model import (
    RewardModel,
    calibration_error,
    discriminator_loss,
    fit_pairs,
    fit_ratings,
    lower_bound,
    pair_accuracy,
    regression_loss,
    reliability,
)

TEXTS = ["a good film", "", "a much longer sentence about two brothers in Paris, told twice", "妙"]


@pytest.fixture
def model():
    """The bundled trunk with a head that is not zero."""
    torch.manual_seed(0)
    model = RewardModel.from_pretrained("tiny", device="cpu")
    nn.init.normal_(model.head.weight)
    return model


# -- the model ------------------------------------------------------------------------------------------------------


def test_rate_is_the_head_on_the_closing_tokens_state(model):
    lm = GPT2Policy.from_pretrained("tiny", device="cpu").lm
    for text, rating in zip(TEXTS, model.rate(TEXTS)):
        ids = torch.tensor([[*model.tokenizer(text)["input_ids"], model.tokenizer.eos_token_id]])
        state = lm(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        expected = (state * model.head.weight[0]).sum() + model.head.bias[0]
        torch.testing.assert_close(rating, expected, atol=1e-4, rtol=1e-4)


def test_neither_neighbours_nor_order_matter(model):
    alone = torch.cat([model.rate([text]) for text in TEXTS])
    torch.testing.assert_close(model.rate(TEXTS), alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.rate(TEXTS[::-1]).flip(0), alone, atol=1e-4, rtol=1e-4)


def test_the_last_word_counts(model):
    a, b = model.rate(["the film is good", "the film is bad"])
    assert (a - b).abs() > 1e-3


def test_as_a_reward_it_reads_prompt_and_response(model):
    scores = model(["a good", "a"], [" film", " good film"])
    assert not scores.requires_grad and scores.device.type == "cpu" and scores.shape == (2,)
    torch.testing.assert_close(scores, model.rate(["a good film", "a good film"]).detach())
    with pytest.raises(ValueError):
        model(["one"], ["a", "b"])


def test_a_fresh_head_says_nothing():
    assert RewardModel.from_pretrained("tiny", device="cpu").rate(TEXTS).tolist() == [0.0] * 4


def test_gradient_reaches_head_and_trunk(model):
    model.rate(TEXTS).sum().backward()
    assert model.head.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.trunk.named_parameters())


def test_training_leaves_dropout_off(model):
    model.train()
    assert torch.equal(model.rate(TEXTS), model.rate(TEXTS))


def test_texts_beyond_the_context_are_cut(model):
    start = "good " * 126
    long, longer = model.rate([start + "bad " * 200, start + "fine " * 300])
    assert long.item() == pytest.approx(longer.item(), rel=1e-5)  # rows of one batch may differ in the last digit


def test_bad_texts_are_named(model):
    for bad in ("a text", []):
        with pytest.raises(ValueError, match="texts must be a list of at least one string"):
            model.rate(bad)


def test_it_saves_and_loads_as_safetensors(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    again = RewardModel.from_pretrained(str(tmp_path), device="cpu")
    assert torch.equal(again.rate(TEXTS), model.rate(TEXTS))
    with safe_open(tmp_path / "reward_head.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["bias", "weight"]


def test_any_causal_trunk_will_do():
    torch.manual_seed(0)
    tokenizer = RewardModel.from_pretrained("tiny", device="cpu").tokenizer
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    model = RewardModel(LlamaModel(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval(), tokenizer)
    nn.init.normal_(model.head.weight)
    alone = torch.cat([model.rate([text]) for text in TEXTS])
    torch.testing.assert_close(model.rate(TEXTS), alone, atol=1e-4, rtol=1e-4)


def test_an_unknown_name_is_named():
    with pytest.raises(ValueError, match="cannot load '/no/such/folder'"):
        RewardModel.from_pretrained("/no/such/folder")


# -- losses ---------------------------------------------------------------------------------------------------------


def test_regression_loss_by_hand():
    assert regression_loss(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0])) == pytest.approx((1 + 9) / 2)


def test_bradley_terry_is_a_likelihood(randn):
    a, b = randn(7), randn(7)
    expected = -sum(math.log(math.exp(x) / (math.exp(x) + math.exp(y))) for x, y in zip(a.tolist(), b.tolist())) / 7
    assert bradley_terry_loss(a, b).item() == pytest.approx(expected)
    assert bradley_terry_loss(a, b, torch.ones(7)).item() == pytest.approx(expected)


def test_bradley_terry_with_soft_labels(randn):
    a, b, p = randn(7), randn(7), torch.rand(7)
    total = 0.0
    for x, y, q in zip(a.tolist(), b.tolist(), p.tolist()):
        win = math.exp(x) / (math.exp(x) + math.exp(y))
        total -= q * math.log(win) + (1 - q) * math.log(1 - win)
    assert bradley_terry_loss(a, b, p).item() == pytest.approx(total / 7, rel=1e-6)


def test_bradley_terry_is_least_where_the_model_says_what_people_say():
    margin = torch.linspace(-3, 3, 601, dtype=torch.float64)
    losses = [bradley_terry_loss(m[None], torch.zeros(1).double(), torch.tensor([0.8]).double()) for m in margin]
    best = margin[torch.stack(losses).argmin()]
    assert torch.sigmoid(best).item() == pytest.approx(0.8, abs=0.002)


def test_bradley_terry_raises_the_preferred_and_sees_differences_only(randn):
    a, b = randn(5).requires_grad_(), randn(5).requires_grad_()
    loss = bradley_terry_loss(a, b)
    loss.backward()
    assert (a.grad < 0).all() and (b.grad > 0).all()
    torch.testing.assert_close(a.grad, -torch.sigmoid(b - a) / 5)
    torch.testing.assert_close(bradley_terry_loss(a + 3, b + 3), loss)


def test_bradley_terry_survives_large_margins():
    far = torch.tensor([1000.0])
    assert bradley_terry_loss(far, -far) == 0 and bradley_terry_loss(-far, far) == 2000


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bradley_terry_loss(torch.zeros(3), torch.zeros(2)), r"rejected must be \[N\].*\(3,\).*\(2,\)"),
        (lambda: bradley_terry_loss(torch.zeros(3, 1), torch.zeros(3, 1)), r"preferred must be \[N\]"),
        (lambda: bradley_terry_loss(torch.zeros(3), torch.zeros(3), torch.ones(1)), r"probability must be \[N\]"),
        (lambda: regression_loss(torch.zeros(3), torch.zeros(3, 1)), r"scores and ratings must be of one shape"),
        (lambda: pair_accuracy(torch.zeros(0), torch.zeros(0)), "preferred and rejected"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_discriminator_loss_is_binary_cross_entropy(randn):
    human, generated = randn(4), randn(6)
    bce = nn.functional.binary_cross_entropy
    expected = bce(human.sigmoid(), torch.ones(4).double()) + bce(generated.sigmoid(), torch.zeros(6).double())
    torch.testing.assert_close(discriminator_loss(human, generated), expected)
    assert discriminator_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(math.log(4))


# -- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, 32])
def test_ratings_are_learned(batch_size):
    texts = [f"a {word} film" for word in ("good", "great", "fine", "lovely", "bad", "awful", "poor", "dull")]
    ratings = [2.0] * 4 + [-2.0] * 4
    torch.manual_seed(0)
    model = RewardModel.from_pretrained("tiny", device="cpu")
    losses = fit_ratings(model, texts, ratings, epochs=30, lr=5e-4, batch_size=batch_size)
    assert len(losses) == 30 * math.ceil(8 / batch_size) and losses[-1] < 0.2 < losses[0]
    assert (model(texts, [""] * 8) - torch.tensor(ratings)).abs().max() < 1


def test_training_starts_at_the_mean_rating():
    model = RewardModel.from_pretrained("tiny", device="cpu")
    losses = fit_ratings(model, ["a", "b"], [3.0, 5.0], batch_size=2)
    assert losses[0] == pytest.approx(1.0, abs=1e-5)  # the variance of 3 and 5


def test_pairs_are_learned():
    texts = load_human_ratings("movies", "validation").text[:40]
    pairs = edit_pairs(texts)
    torch.manual_seed(0)
    model = RewardModel.from_pretrained("tiny", device="cpu")
    losses = fit_pairs(model, pairs, epochs=8, lr=5e-4, batch_size=8)
    assert losses[0] == pytest.approx(math.log(2)) and np.mean(losses[-5:]) < 0.3
    nothing = [""] * len(pairs)
    assert pair_accuracy(model(pairs.preferred, nothing), model(pairs.rejected, nothing)) > 0.9


def test_soft_labels_reach_the_loss():
    pairs = Pairs(["a good film", "a fine film"], ["a bad film", "a dull film"], torch.tensor([0.5, 0.5]))
    model = RewardModel.from_pretrained("tiny", device="cpu")
    fit_pairs(model, pairs, epochs=20, lr=5e-4)
    margin = model(pairs.preferred, ["", ""]) - model(pairs.rejected, ["", ""])
    assert margin.abs().max() < 0.3, "people who are undecided teach no difference"


def test_training_repeats_itself():
    runs = []
    for _ in range(2):
        model = RewardModel.from_pretrained("tiny", device="cpu")
        runs.append(fit_ratings(model, TEXTS, [1.0, 0.0, -1.0, 2.0], epochs=3, batch_size=2, seed=5))
    assert runs[0] == runs[1]


def test_as_many_ratings_as_texts():
    model = RewardModel.from_pretrained("tiny", device="cpu")
    with pytest.raises(ValueError, match="got 1 for 2 texts"):
        fit_ratings(model, ["a", "b"], [1.0])


# -- measures -------------------------------------------------------------------------------------------------------


def test_pair_accuracy_counts_ties_half():
    assert pair_accuracy(torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([0.0, 2.0, 4.0, -1.0])) == 2.5 / 4


def test_reliability_by_hand():
    said, happened = torch.tensor([0.05, 0.15, 0.1, 0.95, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    rows = reliability(said, happened, bins=10)
    assert [row["count"] for row in rows] == [1, 2, 2]
    assert [row["said"] for row in rows] == pytest.approx([0.05, 0.125, 0.975])
    assert [row["happened"] for row in rows] == pytest.approx([0.0, 0.5, 0.5])
    assert calibration_error(said, happened) == pytest.approx((0.05 + 2 * 0.375 + 2 * 0.475) / 5)


def test_outcomes_drawn_as_predicted_are_calibrated(generator):
    said = torch.rand(20000, generator=generator)
    happened = torch.bernoulli(said, generator=generator)
    assert calibration_error(said, happened) < 0.02
    assert calibration_error(said, 1 - happened) > 0.4


def test_lower_bound_is_mean_minus_deviations():
    rewards = [lambda p, r, x=x: torch.tensor(x) for x in ([1.0, 2.0], [3.0, 2.0], [2.0, 5.0])]
    scores = lower_bound(rewards, k=2.0)(["", ""], ["", ""])
    expected = [np.mean(x) - 2 * np.std(x) for x in ([1, 3, 2], [2, 2, 5])]
    assert scores.tolist() == pytest.approx(expected)
    assert lower_bound(rewards[:1])(["", ""], ["", ""]).tolist() == [1.0, 2.0], "one model is sure of itself"


# -- the bundled model ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bundled_reward_model_agrees_with_people():
    model, table = RewardModel.from_pretrained("ratings", device="cpu"), load_human_ratings("movies", "test")
    scores = torch.cat([model(table.text[i : i + 100], [""] * 100) for i in range(0, 800, 100)])
    assert np.corrcoef(scores, table.mean)[0, 1] >= 0.68
    rating = dict(zip(table.text, scores))
    pairs = rating_pairs(table, 2000, min_gap=1.0)
    preferred, rejected = (torch.stack([rating[t] for t in texts]) for texts in (pairs.preferred, pairs.rejected))
    assert pair_accuracy(preferred, rejected) >= 0.83
