"""Classifiers trained by rewards: text is the state, the label is the action, and the episode ends after one action."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from rlcourse.baselines import leave_one_out_baseline
from rlcourse.losses import entropy, reinforce_loss


class TextClassifier(nn.Module):
    """A BERT encoder as a policy over labels: `model(rows)` gives the logits [B, A] of texts encoded by `encode`.

    bert: a `BertForSequenceClassification`; tokenizer: its own. Unlike the language models of this package it keeps
    its dropout in training mode: one forward pass both draws the action and is learned from.
    """

    def __init__(self, bert: nn.Module, tokenizer):
        super().__init__()
        self.bert, self.tokenizer = bert, tokenizer

    @property
    def num_labels(self) -> int:
        return self.bert.config.num_labels

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, [CLS] first and [SEP] last; a text longer than the context is cut at its end."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts) or not len(texts):
            raise ValueError(f"texts must be a list of at least one string, got {texts!r}")
        longest = self.bert.config.max_position_embeddings
        return self.tokenizer(texts, truncation=True, max_length=longest)["input_ids"]

    def forward(self, rows: list[list[int]]) -> Tensor:
        """Logits [B, A]; shorter rows are padded on the right, and the mask keeps attention off the padding."""
        width, pad, device = max(map(len, rows)), self.tokenizer.pad_token_id, self.bert.device
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        return self.bert(input_ids=ids, attention_mask=mask).logits.float()

    @torch.no_grad()
    def predict(self, rows: list[list[int]], batch_size: int = 128) -> Tensor:
        """Logits [N, A] of encoded texts on the CPU, with dropout off whatever the mode; the label is their argmax."""
        training = self.training
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        self.eval()
        found = [self([rows[i] for i in order[k : k + batch_size]]).cpu() for k in range(0, len(rows), batch_size)]
        self.train(training)
        return torch.cat(found)[torch.tensor(order).argsort()]


def load_classifier(
    name_or_path: str = "small",
    num_labels: int = 2,
    texts: list[str] | None = None,
    tokenizer=None,
    dropout: float = 0.0,
    device=None,
) -> TextClassifier:
    """A BERT with a fresh output layer: "small" is built here, anything else is a Hugging Face id or a folder.

    "small": one layer of width 64 with random weights from torch's global generator; its tokenizer, a BPE of at
    most 4,000 tokens, is trained on `texts` unless one is given. "bert-base-uncased" is fetched on first use. device:
    default is the GPU when there is one. Raises ValueError, naming what is accepted, for anything else.
    """
    if num_labels < 2 or not 0 <= dropout < 1:
        raise ValueError(f"num_labels must be at least 2 and dropout in [0, 1), got {num_labels} and {dropout}")
    rates = dict(num_labels=num_labels, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    if name_or_path == "small":
        if tokenizer is None and (not texts or isinstance(texts, str)):
            raise ValueError('"small" trains its tokenizer on texts: pass texts, a list of strings, or a tokenizer')
        tokenizer = tokenizer or _train_tokenizer(texts)
        config = BertConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=128, hidden_act="relu", max_position_embeddings=160, **rates)  # fmt: skip
        bert = BertForSequenceClassification(config)
    else:
        bert, tokenizer = _pretrained(name_or_path, rates)
    return TextClassifier(bert, tokenizer).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _train_tokenizer(texts: list[str], vocab_size: int = 4000) -> PreTrainedTokenizerFast:
    """Lower-case byte-level BPE with [CLS] and [SEP]; a WordPiece would break ties by chance, this can be repeated."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.BertNormalizer(lowercase=True)
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    special, alphabet = ["[PAD]", "[CLS]", "[SEP]"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    ends = [(token, bpe.token_to_id(token)) for token in special[1:]]
    bpe.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    marks = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **marks)


def _pretrained(name_or_path, rates: dict) -> tuple[nn.Module, object]:
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    if Path(name_or_path).is_dir():  # a bar is for downloads
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # a fresh output layer is what we ask for
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        bert = BertForSequenceClassification.from_pretrained(
            name_or_path, dtype=torch.float32, use_safetensors=True, **rates
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f'cannot load {str(name_or_path)!r}: expected "small", a folder with a saved BERT, or the id of one on the '
            'Hugging Face hub such as "bert-base-uncased" (its first use needs a network connection). '
            f"The loader said: {str(error).splitlines()[0]}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    return bert, tokenizer


def epoch_batches(rows: list[list[int]], batch_size: int, rng: random.Random) -> list[list[int]]:
    """The numbers of all rows, shuffled, in batches of like length so that little is padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]) + 8 * rng.random())
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    return rng.sample(batches, len(batches))


def expected_reward_loss(logits: Tensor, rewards: Tensor) -> Tensor:
    """Minus the expected reward of a contextual bandit, exact: the sum over the actions is written out.

    logits, rewards: [B, A] -> scalar.    -mean_rows( sum_a pi(a|x) * rewards[x, a] )

    It needs the reward of every action, chosen or not.
    """
    _check_table(logits, rewards=rewards)
    return -(logits.softmax(-1) * rewards.detach()).sum(-1).mean()


def sampled_reward_loss(logits: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE for episodes of one action; drawn from pi, its expected gradient is that of `expected_reward_loss`.

    logits: [B, A], actions: [B] long, advantages: [B], reward minus a baseline -> scalar.
        -mean_rows( log pi(action|x) * advantage )
    """
    logprobs, advantages = _chosen(logits, actions), _per_row(logits, advantages=advantages)
    return reinforce_loss(logprobs[:, None], advantages[:, None], torch.ones_like(advantages)[:, None])


def logged_reward_loss(
    logits: Tensor,
    actions: Tensor,
    rewards: Tensor,
    propensities: Tensor,
    max_weight: float | None = None,
    self_normalised: bool = False,
) -> Tensor:
    """Minus the expected reward, estimated from what another policy did (inverse propensity, Horvitz-Thompson 1952).

    logits: [B, A]; actions: [B] long, rewards: [B], and propensities: [B], the probability in (0, 1] with which the
    logging policy chose that action -> scalar.    weight = pi(action|x) / propensity;    -mean_rows( weight * reward )

    max_weight: larger weights are cut to it (biased, less variance). self_normalised: divide by the mean weight, so
    that a constant added to all rewards changes no gradient (Swaminathan and Joachims 2015).
    """
    logprobs = _chosen(logits, actions)
    rewards, propensities = _per_row(logits, rewards=rewards), _per_row(logits, propensities=propensities)
    if not ((propensities > 0) & (propensities <= 1)).all():
        raise ValueError("propensities must lie in (0, 1]: an action that was never shown says nothing")
    if max_weight is not None and not max_weight > 0:
        raise ValueError(f"max_weight must be positive or None, got {max_weight}")
    weights = logprobs.exp() / propensities
    if max_weight is not None:
        weights = weights.clamp(max=max_weight)
    value = (weights * rewards).mean()
    return -value / weights.mean() if self_normalised else -value


def cost_rewards(labels: Tensor, costs: Tensor) -> Tensor:
    """Rewards [B, A] from a table of costs: labels [B], costs [A, A], costs[y, a] = price of saying a where y is true.

    costs = 1 - identity gives the reward 0 for a right label and -1 for a wrong one.
    """
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or labels.ndim != 1:
        raise ValueError(f"expected labels [B] and costs [A, A], got {tuple(labels.shape)} and {tuple(costs.shape)}")
    return -costs[labels].float()


def f1_rewards(labels: Tensor, f1: float) -> Tensor:
    """Rewards [B, 2] whose sum is above 0 exactly when the F1 of class 1 is above `f1` (after Dinkelbach 1967).

    F1 = 2 TP / (2 TP + FP + FN) is a ratio of counts, no mean over texts. But F1 > f1 is the same as
    2 (1 - f1) TP - f1 FP - f1 FN > 0: so a hit earns 2 (1 - f1), a mistake costs f1, a true negative earns 0.
    labels: [B] of 0 and 1.
    """
    if labels.ndim != 1 or not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"labels must be [B] of 0 and 1, got {labels.tolist() if labels.ndim else labels}")
    if not 0 <= f1 <= 1:
        raise ValueError(f"f1 must lie in [0, 1], got {f1}")
    return torch.tensor([[0.0, -f1], [-f1, 2 * (1 - f1)]], device=labels.device)[labels]


def bandit_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows,
    reward_of: Callable[[Tensor], Tensor],
    baseline: str | Tensor | None = "others",
    ent_coef: float = 0.0,
    max_grad_norm: float = 1.0,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """One step of policy gradient on a batch of texts: choose labels, be paid, make well-paid choices likelier.

    model(rows) gives logits [B, A]. reward_of: takes the chosen actions [B], long, and gives their rewards [B]; what
    another action would have earned stays unknown. baseline: "others", the mean reward of the other rows; [B], such as
    a forecast; or None. ent_coef: what a nat of entropy earns, so that the policy goes on trying other labels.

        sampled_reward_loss(logits, actions, rewards - baseline) - ent_coef * entropy

    Returns floats: reward (mean), entropy (mean, nats), grad_norm (before it is cut to max_grad_norm).
    """
    logits = model(rows)
    actions = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    rewards = _per_row(logits, rewards=reward_of(actions))
    advantages = rewards - _baseline(logits, rewards, baseline)
    spread = entropy(logits[:, None], torch.ones_like(rewards)[:, None]).mean()
    loss = sampled_reward_loss(logits, actions, advantages) - ent_coef * spread
    optimizer.zero_grad()
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return dict(reward=rewards.mean().item(), entropy=spread.item(), grad_norm=grad_norm.item())


def _baseline(logits: Tensor, rewards: Tensor, baseline) -> Tensor:
    if baseline is None:
        return torch.zeros_like(rewards)
    if isinstance(baseline, Tensor):
        return _per_row(logits, baseline=baseline)
    if baseline != "others":
        raise ValueError(f'baseline must be "others", None or a tensor [B], got {baseline!r}')
    return leave_one_out_baseline(rewards[:, None], torch.ones_like(rewards)[:, None])[:, 0]


def _chosen(logits: Tensor, actions: Tensor) -> Tensor:
    """log pi of the actions, [B]."""
    if logits.ndim != 2 or actions.shape != logits.shape[:1] or actions.is_floating_point():
        got = f"{tuple(logits.shape)} and {actions.dtype} {tuple(actions.shape)}"
        raise ValueError(f"expected logits [B, A] and actions [B] of whole numbers, got {got}")
    return logits.log_softmax(-1).gather(-1, actions[:, None])[:, 0]


def _per_row(logits: Tensor, **named: Tensor) -> Tensor:
    ((name, x),) = named.items()
    if not isinstance(x, Tensor) or x.shape != logits.shape[:1]:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be [B] for logits {tuple(logits.shape)}, got {got}")
    return x.detach().to(logits.dtype)


def _check_table(logits: Tensor, **named: Tensor) -> None:
    ((name, x),) = named.items()
    if logits.ndim != 2 or x.shape != logits.shape:
        raise ValueError(f"{name} must be [B, A] as logits {tuple(logits.shape)} are, got {tuple(x.shape)}")
