"""The making of the bundled model, in small, and the bundled model itself."""

import argparse
import math
import random
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from rlcourse import pretrain
from rlcourse.data import ASSETS, HumanRatings, load_human_ratings
from rlcourse.gpt2 import TINY, GPT2Policy
from rlcourse.pretrain import END, bits_per_byte, train_tokenizer

SUBJECTS = ["The film", "This story", "The plot of it", "Her acting", "A comedy", "The naïve hero", "Its music", "It"]
VERDICTS = [
    "is good.",
    "was not for me!",
    "has charm",
    "goes nowhere, slowly",
    "makes me laugh",
    "is 深 and ☕",
    "ends",
    "is",
]
TEXTS = [f"{subject} {verdict}" for subject in SUBJECTS for verdict in VERDICTS]
random.Random(0).shuffle(TEXTS)


# -- tokenizer ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def test_tokenizer_opens_with_end_and_has_the_size_asked_for(tokenizer):
    assert len(tokenizer) == 300 and END == "<|endoftext|>"
    end = tokenizer.get_vocab()[END]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == end
    assert tokenizer("")["input_ids"] == [end]
    ids = tokenizer("The film is good.")["input_ids"]
    assert ids[0] == end and end not in ids[1:]
    assert tokenizer("The film is good.", add_special_tokens=False)["input_ids"] == ids[1:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " a",
        "a ",
        "  two  spaces\n\ttab",
        "naïve café",
        "深度学习，很好。",
        "👩‍🚀☕",
        "\x00\x7f\u0080",
        "don't 100% <b>",
        "لغة हिंदी",
    ],
)
def test_any_text_comes_back_whole(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) <= len(text.encode())


def test_tokenizer_has_learned_from_its_texts(tokenizer):
    """Byte pairs are merged: its own texts take far fewer tokens than bytes, others about one for each byte."""
    own = len(tokenizer("The film is good.", add_special_tokens=False)["input_ids"])
    assert own < 0.6 * len("The film is good.") and len(tokenizer("ZQXJKV", add_special_tokens=False)["input_ids"]) == 6
    saved = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    assert saved.encode(TEXTS[0]).ids == tokenizer(TEXTS[0])["input_ids"]


# -- bits per byte --------------------------------------------------------------------------------------------------


def small_lm(vocab: int, **changes) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(GPT2Config(**sizes | changes, bos_token_id=0, eos_token_id=0))


@torch.no_grad()
def bits_by_hand(lm, tokenizer, text: str) -> float:
    """One text, one token at a time: what each token and the closing END cost, in bits."""
    end = tokenizer.eos_token_id
    ids, bits = [end], 0.0
    for token in [*tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, end]:
        logits = lm(torch.tensor([ids])).logits[0, -1].double()
        bits -= (logits[token] - logits.exp().sum().log()).item() / math.log(2)
        ids.append(token)
    return bits


def test_bits_per_byte_counts_every_token_the_end_and_every_byte(tokenizer):
    lm = small_lm(len(tokenizer)).eval()
    texts = ["a", "深度学习 ☕", "The film is good.", "naïve", "A comedy goes nowhere, slowly", "is"]
    right = sum(bits_by_hand(lm, tokenizer, t) for t in texts) / sum(len(t.encode("utf-8")) for t in texts)
    for batch_size in (1, 2, 4, 64):
        assert bits_per_byte(lm, tokenizer, texts, batch_size) == pytest.approx(right, rel=1e-5)


def test_bits_per_byte_of_a_model_without_knowledge(tokenizer):
    lm = small_lm(len(tokenizer))
    torch.nn.init.zeros_(lm.lm_head.weight)
    text = "The film is"
    tokens = len(tokenizer(text)["input_ids"])  # the opening END is not predicted, the closing one is
    assert bits_per_byte(lm, tokenizer, [text]) == pytest.approx(tokens * math.log2(len(tokenizer)) / 11, rel=1e-5)


def test_bits_per_byte_has_no_dropout_and_leaves_the_mode_alone(tokenizer):
    lm = small_lm(len(tokenizer), resid_pdrop=0.5, embd_pdrop=0.5)
    first = [bits_per_byte(lm.train(), tokenizer, TEXTS[:5]), bits_per_byte(lm, tokenizer, TEXTS[:5])]
    assert lm.training and first == [bits_per_byte(lm.eval(), tokenizer, TEXTS[:5])] * 2 and not lm.training


def test_bits_per_byte_never_truncates(tokenizer):
    """A text that does not fit the context is an error, not a flattering number."""
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.model_max_length = 8
    lm, text = small_lm(len(tokenizer)).eval(), "The naïve hero goes nowhere, slowly, and then ends"
    right = bits_by_hand(lm, tokenizer, text) / len(text.encode())
    assert bits_per_byte(lm, tokenizer, [text]) == pytest.approx(right, rel=1e-5)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        bits_per_byte(lm, tokenizer, ["ZQXJKV" * 20])


# -- what is trained on ---------------------------------------------------------------------------------------------


def bare(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum() or c == "_") or text


def test_no_held_out_sentence_is_trained_on():
    movies, others = pretrain._corpus()
    table = load_human_ratings("all")
    held_out = {bare(text) for text, split in zip(table.text, table.split) if split != "train"}
    assert not held_out & {bare(text) for text in movies + others} and len(held_out) > 2000
    for texts, about_films in ((movies, True), (others, False)):
        allowed = {text for text, source in zip(table.text, table.source) if (source == "movies") == about_films}
        assert set(texts) <= allowed and len(texts) > 9000


def test_batches_hold_every_row_once():
    rng = random.Random(0)
    rows = [[i] * rng.randint(1, 30) for i in range(200)]
    batches = pretrain._batches(rows, 128, rng)
    assert sorted(row[0] for batch in batches for row in batch) == list(range(200))
    padded = [len(batch) * max(map(len, batch)) for batch in batches]
    assert max(padded) <= 128 + 4 * 30 and sum(padded) < 1.3 * sum(map(len, rows))


# -- a run in small -------------------------------------------------------------------------------------------------


@pytest.fixture
def args():
    return argparse.Namespace(
        vocab_size=300, width=16, layers=1, heads=2, context=32, epochs=2, batch_tokens=128, dropout=0.1, lr=5e-3,
        muon_lr=5e-3, weight_decay=0.1, warmup=0.1, others=1, until=1.0, seed=0, bf16=0,
    )  # fmt: skip


@pytest.fixture
def little_data(monkeypatch):
    """48 texts to train on, a third of them not about films, and 16 held out; no bars."""
    held_out = HumanRatings(TEXTS[48:], [[1]] * 16, ["movies"] * 16, ["validation"] * 16)
    monkeypatch.setattr(pretrain, "_corpus", lambda: (TEXTS[:32], TEXTS[32:48]))
    monkeypatch.setattr(pretrain, "load_human_ratings", lambda *which: held_out)
    monkeypatch.setattr(pretrain, "tqdm", lambda batches, **_: Silent(batches))


class Silent(list):
    def set_postfix(self, **_):
        pass


def weights(folder) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_interrupted_run_ends_with_the_same_weights(args, little_data, tmp_path, monkeypatch, capsys):
    whole = pretrain.pretrain(tmp_path / "whole", args)
    said = capsys.readouterr().out
    assert "epoch 1/2" in said and "epoch 2/2" in said and "bits a byte" in said

    one_epoch = pretrain._one_epoch

    def interrupted(lm, optimizers, rows, epoch, args):
        if epoch == 1:
            one_epoch(lm, optimizers, rows, epoch, args)  # as if the kill came at the very end of the epoch
            raise KeyboardInterrupt
        return one_epoch(lm, optimizers, rows, epoch, args)

    monkeypatch.setattr(pretrain, "_one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(tmp_path / "halves", args)
    assert not (tmp_path / "halves" / "model.safetensors").exists()
    monkeypatch.setattr(pretrain, "_one_epoch", one_epoch)
    (tmp_path / "halves" / "checkpoint.partial").write_bytes(b"half a checkpoint")
    capsys.readouterr()
    resumed = pretrain.pretrain(tmp_path / "halves", args)
    assert "epoch 1/2" not in (said_later := capsys.readouterr().out) and "epoch 2/2" in said_later
    assert said.splitlines()[-1] == said_later.splitlines()[-1]
    for a, b in (
        (whole.state_dict(), resumed.state_dict()),
        (weights(tmp_path / "whole"), weights(tmp_path / "halves")),
    ):
        assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    untrained = small_lm(300, n_positions=32, n_layer=1)
    assert not untrained.lm_head.weight.half().equal(whole.lm_head.weight)


def test_a_run_saves_what_from_pretrained_loads(args, little_data, tmp_path):
    lm = pretrain.pretrain(tmp_path, args)
    policy = GPT2Policy.from_pretrained(tmp_path, device="cpu")
    assert type(policy.lm) is GPT2LMHeadModel and policy.context == 32
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float16}
    assert policy.lm.lm_head.weight.equal(lm.lm_head.weight.float())
    assert policy.encode(["It"]).ids[0, 0] == policy.tokenizer.bos_token_id == policy.lm.config.bos_token_id
    assert policy.tokenizer.model_max_length == 32


def test_training_helps(args, little_data, tmp_path):
    """With the texts' few patterns learned, held-out ones of the same make cost far fewer bits."""
    args.epochs, args.dropout = 12, 0.0
    lm = pretrain.pretrain(tmp_path, args).float()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    before = bits_per_byte(small_lm(300, n_positions=32, initializer_range=0.02), tokenizer, TEXTS[48:])
    assert bits_per_byte(lm, tokenizer, TEXTS[48:]) < 0.7 * before


def test_main_prints_held_out_bits_per_byte(little_data, tmp_path, monkeypatch, capsys):
    small = "--vocab-size 300 --width 16 --layers 1 --heads 2 --context 32 --epochs 1 --batch-tokens 128"
    monkeypatch.setattr(sys, "argv", ["pretrain", *small.split(), "--out", str(tmp_path / "out")])
    pretrain.main()
    last = capsys.readouterr().out.splitlines()[-1]
    bits = bits_per_byte(
        GPT2LMHeadModel.from_pretrained(tmp_path / "out", dtype=torch.float32),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
        TEXTS[48:],
    )
    assert f"{bits:.3f} bits a byte on the 800 test movie snippets" in last
    shutil.rmtree(tmp_path / "out")


# -- the bundled model ----------------------------------------------------------------------------------------------


def test_bundled_model_knows_how_reviews_are_written():
    texts = load_human_ratings("movies", "test").text
    assert len(texts) == 800
    lm = GPT2LMHeadModel.from_pretrained(TINY, dtype=torch.float32)
    assert bits_per_byte(lm, AutoTokenizer.from_pretrained(TINY), texts) <= 1.90


def test_bundled_bits_per_byte_by_hand():
    """The number above, on a few snippets, one token at a time."""
    texts = load_human_ratings("movies", "test").text[:6]
    lm, tokenizer = (
        GPT2LMHeadModel.from_pretrained(TINY, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(TINY),
    )
    right = sum(bits_by_hand(lm, tokenizer, t) for t in texts) / sum(len(t.encode()) for t in texts)
    assert bits_per_byte(lm, tokenizer, texts) == pytest.approx(right, rel=1e-5)


def test_bundled_files():
    assert TINY == ASSETS / "tiny"
    files = {path.name: path.stat().st_size for path in TINY.iterdir()}
    assert files["model.safetensors"] <= 10e6 and sum(files.values()) <= 12e6
    assert not [name for name in files if name.rsplit(".")[-1] not in ("json", "safetensors", "md")]
    assert {tensor.dtype for tensor in weights(TINY).values()} == {torch.float16}
    config = GPT2Config.from_pretrained(TINY)
    assert config.architectures == ["GPT2LMHeadModel"] and config.n_positions >= 128
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert len(tokenizer) == config.vocab_size and tokenizer.model_max_length == config.n_positions
    assert tokenizer.eos_token_id == config.eos_token_id == config.bos_token_id


def test_bundled_model_has_a_card():
    card = (TINY / "README.md").read_text(encoding="utf-8").lower()
    assert all(word in card for word in ("bits", "hutto", "licence", "held-out", "rlcourse.pretrain"))
