"""Rewards for classifiers: losses against loops, enumeration over the actions and finite differences; the encoder."""

import itertools
import random

import pytest
import torch
from torch import nn

from rlcourse.classification import (
    TextClassifier,
    bandit_update,
    cost_rewards,
    epoch_batches,
    expected_reward_loss,
    f1_rewards,
    load_classifier,
    logged_reward_loss,
    sampled_reward_loss,
)
from rlcourse.data import load_prompts

TEXTS = ["a good film", "a bad film, and long", "good fun", "dull", "the film is not good at all", "fun for all"] * 3


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def softmax(row):
    weights = [float(torch.tensor(x).double().exp()) for x in row]
    return [w / sum(weights) for w in weights]


@pytest.fixture
def logits(randn):
    return randn(4, 3).requires_grad_()


# -- the exact expectation ------------------------------------------------------------------------------------------


def test_expected_reward_is_the_sum_over_actions(logits, randn):
    rewards = randn(4, 3)
    loops = [sum(p * r for p, r in zip(softmax(row), rs)) for row, rs in zip(logits.tolist(), rewards.tolist())]
    assert expected_reward_loss(logits, rewards).item() == pytest.approx(-sum(loops) / 4)


def test_expected_reward_gradient_by_hand_and_sign(logits, randn):
    """d loss / d logit = -pi(a) (r(a) - sum_b pi(b) r(b)) / B; a step down the gradient earns more."""
    rewards = randn(4, 3)
    pi = logits.detach().softmax(1)
    expected = -pi * (rewards - (pi * rewards).sum(1, keepdim=True)) / 4
    found = gradient(expected_reward_loss(logits, rewards), logits)
    assert torch.allclose(found, expected)
    assert expected_reward_loss(logits - found, rewards) < expected_reward_loss(logits, rewards)


def test_a_constant_added_to_a_texts_rewards_changes_no_gradient(logits, randn):
    rewards = randn(4, 3)
    two = [gradient(expected_reward_loss(logits, r), logits) for r in (rewards, rewards + torch.arange(4.0)[:, None])]
    assert torch.allclose(*two)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (4, 2)])
def test_wrong_rewards_are_named(logits, shape):
    with pytest.raises(ValueError, match=r"rewards must be \[B, A\].*\(4, 3\)"):
        expected_reward_loss(logits, torch.zeros(shape))


# -- sampled actions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_sampled_loss_has_the_expected_gradient(randn, baseline):
    """Enumerated over all 3 x 3 pairs of actions of two texts, each weighed by its probability."""
    logits, rewards = randn(2, 3).requires_grad_(), randn(2, 3)
    pi, total = logits.detach().softmax(1), torch.zeros(2, 3, dtype=torch.float64)
    for a, b in itertools.product(range(3), range(3)):
        earned = torch.stack([rewards[0, a], rewards[1, b]])
        loss = sampled_reward_loss(logits, torch.tensor([a, b]), earned - baseline)
        total += pi[0, a] * pi[1, b] * gradient(loss, logits)
    assert torch.allclose(total, gradient(expected_reward_loss(logits, rewards), logits))


def test_sampled_loss_by_hand_and_advantages_carry_no_gradient(logits):
    advantages = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([2, 0, 1, 1])
    loss = sampled_reward_loss(logits, actions, advantages)
    pi = [softmax(row) for row in logits.tolist()]
    by_hand = sum(
        -float(torch.tensor(pi[b][a]).log()) * x for b, (a, x) in enumerate(zip(actions, advantages.tolist()))
    )
    assert loss.item() == pytest.approx(by_hand / 4, rel=1e-6)
    loss.backward()
    assert advantages.grad is None
    assert logits.grad[0, 2] < 0 < logits.grad[1, 0]  # a good action's logit rises, a bad one's falls


@pytest.mark.parametrize(
    "actions, advantages",
    [(torch.zeros(3, dtype=torch.long), torch.zeros(4)), (torch.zeros(4), torch.zeros(4)),
     (torch.zeros(4, dtype=torch.long), torch.zeros(4, 1)), (torch.zeros(4, dtype=torch.long), [0.0] * 4)],
)  # fmt: skip
def test_wrong_samples_are_named(logits, actions, advantages):
    with pytest.raises(ValueError, match=r"actions|advantages"):
        sampled_reward_loss(logits, actions, advantages)


# -- logged feedback ------------------------------------------------------------------------------------------------


def test_logged_loss_is_unbiased(randn):
    """One text: the mean over what the logger does is the exact expected reward, in value and gradient."""
    logits, rewards, mu = randn(1, 3).requires_grad_(), randn(1, 3), torch.tensor([0.7, 0.2, 0.1]).double()
    losses = [
        logged_reward_loss(logits, torch.tensor([a]), rewards[:, a], mu[a : a + 1]) * mu[a].item() for a in range(3)
    ]
    exact = expected_reward_loss(logits, rewards)
    assert sum(losses).item() == pytest.approx(exact.item())
    assert torch.allclose(gradient(sum(losses), logits), gradient(exact, logits))


def batch(randn):
    mu = torch.tensor([0.9, 0.05, 0.5, 0.2]).double()
    return torch.tensor([2, 0, 1, 1]), randn(4), mu


def test_weights_are_cut(logits, randn):
    actions, rewards, mu = batch(randn)
    pi = [softmax(row)[a] for row, a in zip(logits.tolist(), actions.tolist())]
    weights = [min(p / m, 1.5) for p, m in zip(pi, mu.tolist())]
    assert max(p / m for p, m in zip(pi, mu.tolist())) > 1.5
    by_hand = -sum(w * r for w, r in zip(weights, rewards.tolist())) / 4
    assert logged_reward_loss(logits, actions, rewards, mu, max_weight=1.5).item() == pytest.approx(by_hand)


def test_self_normalised_ignores_a_constant_and_the_plain_one_does_not(logits, randn):
    actions, rewards, mu = batch(randn)

    def both(**how):
        return [gradient(logged_reward_loss(logits, actions, r, mu, **how), logits) for r in (rewards, rewards + 5)]

    assert torch.allclose(*both(self_normalised=True))
    assert not torch.allclose(*both())
    pi = [softmax(row)[a] for row, a in zip(logits.tolist(), actions.tolist())]
    weights = [p / m for p, m in zip(pi, mu.tolist())]
    by_hand = -sum(w * r for w, r in zip(weights, rewards.tolist())) / sum(weights)
    assert logged_reward_loss(logits, actions, rewards, mu, self_normalised=True).item() == pytest.approx(by_hand)


def test_a_log_is_data_and_carries_no_gradient(logits, randn):
    actions, rewards, mu = batch(randn)
    logged_reward_loss(logits, actions, rewards.requires_grad_(), mu.requires_grad_()).backward()
    assert rewards.grad is None and mu.grad is None and logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "mu, how, message",
    [([0.5, 0.5, 0.0, 0.5], {}, "propensities"), ([0.5, 0.5, 1.1, 0.5], {}, "propensities"),
     ([0.5], {}, "propensities must be"), ([0.5] * 4, dict(max_weight=0), "max_weight")],
)  # fmt: skip
def test_wrong_logs_are_named(logits, mu, how, message):
    with pytest.raises(ValueError, match=message):
        logged_reward_loss(logits, torch.zeros(4, dtype=torch.long), torch.zeros(4), torch.tensor(mu), **how)


# -- rewards --------------------------------------------------------------------------------------------------------


def test_costs():
    costs = torch.tensor([[0.0, 1.0], [3.0, 0.0]])  # a miss of class 1 costs three times as much
    assert cost_rewards(torch.tensor([1, 0, 1]), costs).tolist() == [[-3, 0], [0, -1], [-3, 0]]
    with pytest.raises(ValueError, match="costs"):
        cost_rewards(torch.tensor([1]), torch.zeros(2, 3))


def test_f1_rewards_are_positive_exactly_when_f1_is_above():
    """All label and prediction vectors of length 4, against F1 counted in a loop."""
    for labels, said in itertools.product(itertools.product((0, 1), repeat=4), repeat=2):
        tp = sum(y and a for y, a in zip(labels, said))
        wrong = sum(y != a for y, a in zip(labels, said))
        if tp + wrong == 0:
            continue
        f1 = 2 * tp / (2 * tp + wrong)
        rows, columns = torch.arange(4), torch.tensor(said)
        for at, sign in ((f1 - 0.01, 1), (f1, 0), (f1 + 0.01, -1)):
            if 0 <= at <= 1:
                total = f1_rewards(torch.tensor(labels), at)[rows, columns].sum().item()
                assert (total > 1e-5) - (total < -1e-5) == sign


@pytest.mark.parametrize("f1", [0.2, 0.8])
def test_the_best_threshold_for_f1_is_half_of_it(f1):
    """Lipton et al. 2014: say class 1 when its probability exceeds f1 / 2."""
    table = f1_rewards(torch.tensor([0, 1]), f1)
    for p in (f1 / 2 - 0.01, f1 / 2 + 0.01):
        earns = (1 - p) * table[0] + p * table[1]
        assert (earns[1] > earns[0]).item() == (p > f1 / 2)


def test_wrong_f1_arguments():
    with pytest.raises(ValueError, match="labels"):
        f1_rewards(torch.tensor([0, 2]), 0.5)
    with pytest.raises(ValueError, match="f1"):
        f1_rewards(torch.tensor([0, 1]), 1.5)


# -- the update -----------------------------------------------------------------------------------------------------


class Table(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(start))

    def forward(self, rows):
        return self.logits[rows]


@pytest.mark.parametrize("baseline", ["others", None, torch.full((400,), 0.5)])
def test_update_finds_the_better_action(baseline):
    model, rows = Table([[1.0, 0.0], [0.0, 1.0]]), torch.arange(400) % 2
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for seed in range(30):
        stats = bandit_update(model, optimizer, rows, lambda a: (a != rows).float(), baseline, max_grad_norm=10.0,
                              generator=torch.Generator().manual_seed(seed))  # fmt: skip
    assert model.logits[0, 1] > model.logits[0, 0] + 1 and model.logits[1, 0] > model.logits[1, 1] + 1
    assert stats["reward"] > 0.7 and set(stats) == {"reward", "entropy", "grad_norm"}


def test_one_update_by_hand():
    """Plain gradient descent, the actions recorded: logit += lr * mean over rows of (1[a] - pi(a)) * advantage."""
    model, seen = Table([[0.3, -0.2, 0.1]]), []

    def reward_of(actions):
        seen.append(actions.clone())
        return torch.tensor([1.0, 0.0, 0.5, 0.0])

    pi, before = model.logits.detach().softmax(1)[0], model.logits.detach()[0].clone()
    bandit_update(model, torch.optim.SGD(model.parameters(), lr=2.0), torch.zeros(4, dtype=torch.long), reward_of)
    advantages = [1.0 - 0.5 / 3, 0.0 - 1.5 / 3, 0.5 - 1.0 / 3, 0.0 - 1.5 / 3]
    step = sum((nn.functional.one_hot(a, 3) - pi) * x for a, x in zip(seen[0], advantages)) / 4
    assert torch.allclose(model.logits.detach()[0], before + 2.0 * step, atol=1e-6)


def test_equal_rewards_teach_nothing_with_the_baseline_of_the_others():
    model = Table([[0.3, -0.2]])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    stats = bandit_update(model, optimizer, torch.zeros(8, dtype=torch.long), lambda a: torch.ones(8))
    assert stats["grad_norm"] == pytest.approx(0, abs=1e-7)


def test_the_entropy_bonus_by_finite_difference():
    """With equal rewards only the bonus is left: one step of gradient ascent on the entropy, which rises."""
    model, lr, h = Table([[0.9, -0.2, 0.0]]), 0.1, 1e-3
    before = model.logits.detach()[0].double()

    def spread(z):
        return -sum(p * p.log() for p in z.softmax(0)).item()

    shifts = h * torch.eye(3, dtype=torch.float64)
    slope = torch.tensor([(spread(before + d) - spread(before - d)) / (2 * h) for d in shifts])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    stats = bandit_update(model, optimizer, torch.zeros(8, dtype=torch.long), lambda a: torch.ones(8), ent_coef=2.0)
    assert torch.allclose(model.logits.detach()[0].double(), before + lr * 2.0 * slope, atol=1e-5)
    assert stats["entropy"] == pytest.approx(spread(before), abs=1e-5)
    assert spread(model.logits.detach()[0].double()) > spread(before)


@pytest.mark.parametrize("baseline, rewards", [("mean", torch.zeros(4)), (torch.zeros(3), torch.zeros(4)),
                                               (None, torch.zeros(4, 1)), (None, 1.0)])  # fmt: skip
def test_wrong_updates_are_refused(baseline, rewards):
    model = Table([[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"baseline|rewards"):
        bandit_update(
            model, torch.optim.SGD(model.parameters()), torch.zeros(4, dtype=torch.long), lambda a: rewards, baseline
        )


# -- the encoder ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return load_classifier("small", num_labels=3, texts=TEXTS, dropout=0.1, device="cpu")


def test_rows_are_framed_and_read_back(small):
    rows = small.encode(["A good FILM", "unheard"])
    assert small.tokenizer.decode(rows[0][1:-1]) == " a good film"
    assert rows[1][0] == small.tokenizer.cls_token_id and rows[1][-1] == small.tokenizer.sep_token_id
    assert small.tokenizer.pad_token_id == small.bert.config.pad_token_id == 0


def test_padding_and_company_change_nothing(small):
    small.eval()
    rows = small.encode(["dull", "the film is not good at all"])
    with torch.no_grad():
        assert torch.allclose(small(rows)[0], small(rows[:1])[0], atol=1e-5)
        assert torch.allclose(small.predict(small.encode(TEXTS), batch_size=4), small(small.encode(TEXTS)), atol=1e-5)
    assert small.num_labels == 3


def test_predict_turns_dropout_off_and_leaves_the_mode_alone(small):
    small.train()
    rows = small.encode(["good fun"])
    assert torch.equal(small.predict(rows), small.predict(rows)) and small.training
    assert not torch.equal(small(rows), small(rows))


def test_long_texts_are_cut(small):
    (row,) = small.encode(["good " * 500])
    assert len(row) == small.bert.config.max_position_embeddings and small.predict([row]).isfinite().all()


@pytest.mark.parametrize("texts", ["one text", [], [1]])
def test_wrong_texts(small, texts):
    with pytest.raises(ValueError, match="texts must be"):
        small.encode(texts)


def test_training_the_tokenizer_can_be_repeated():
    """`tokenizers` trains a WordPiece differently each time, in this process too."""
    vocabularies = [load_classifier(texts=load_prompts(), device="cpu").tokenizer.get_vocab() for _ in range(4)]
    assert all(v == vocabularies[0] for v in vocabularies) and len(vocabularies[0]) > 300


def test_a_tokenizer_can_be_shared(small):
    torch.manual_seed(0)
    again = load_classifier("small", num_labels=3, tokenizer=small.tokenizer, device="cpu")
    assert again.encode(TEXTS) == small.encode(TEXTS)


def test_the_same_code_takes_a_saved_bert(small, tmp_path, capfd):
    """A folder written by transformers itself, as bert-base-uncased is one; its output layer is made anew."""
    small.bert.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    rows = small.encode(TEXTS)
    loaded = load_classifier(str(tmp_path), num_labels=3, dropout=0.3, device="cpu")
    assert torch.allclose(loaded.predict(rows), small.predict(rows), atol=1e-6)
    assert loaded.bert.config.hidden_dropout_prob == 0.3
    small.bert.bert.save_pretrained(tmp_path / "encoder")  # without an output layer, as a pretrained BERT comes
    small.tokenizer.save_pretrained(tmp_path / "encoder")
    fresh = load_classifier(str(tmp_path / "encoder"), num_labels=5, device="cpu")
    assert fresh.predict(rows[:1]).shape == (1, 5) and fresh.encode(TEXTS) == rows
    a, b = (m.bert.bert.embeddings.word_embeddings.weight for m in (fresh, small))
    assert torch.equal(a, b)
    assert "MISSING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["big", "/no/such/folder"])
def test_an_unknown_name_says_what_is_accepted(name):
    with pytest.raises(ValueError, match=r'"small".*folder.*"bert-base-uncased"'):
        load_classifier(name)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="pass texts"):
        load_classifier("small")
    with pytest.raises(ValueError, match="pass texts"):
        load_classifier("small", texts="one text")
    with pytest.raises(ValueError, match="num_labels"):
        load_classifier("small", num_labels=1, texts=TEXTS)
    with pytest.raises(ValueError, match="dropout"):
        load_classifier("small", texts=TEXTS, dropout=1.0)


def test_an_epoch_holds_every_row_once_in_batches_of_like_length():
    rows = [[0] * (1 + i % 40) for i in range(200)]
    batches = epoch_batches(rows, 16, random.Random(0))
    assert sorted(i for batch in batches for i in batch) == list(range(200)) and max(map(len, batches)) == 16
    assert max(max(len(rows[i]) for i in b) - min(len(rows[i]) for i in b) for b in batches) < 20
    assert batches != epoch_batches(rows, 16, random.Random(1))


def test_it_learns():
    """Label = whether "good" or "bad" stands in the text."""
    torch.manual_seed(0)
    texts = [f"{a} {b} {c}" for a in ("a", "the") for b in ("good", "bad") for c in ("film", "story", "joke")] * 4
    labels = torch.tensor([int("good" in text) for text in texts])
    model = load_classifier("small", texts=texts, device="cpu", dropout=0.0)
    assert isinstance(model, TextClassifier)
    optimizer, rows = torch.optim.AdamW(model.parameters(), lr=1e-3), model.encode(texts)
    for _ in range(60):
        bandit_update(model, optimizer, rows, lambda a: (a == labels).float())
    assert (model.predict(rows).argmax(1) == labels).all()
