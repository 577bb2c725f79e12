"""A reward learned from people: a scalar head on a language model's trunk, its losses and its measures."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlcourse.gpt2 import GPT2Policy
from rlcourse.losses import bradley_terry_loss
from rlcourse.plotting import progress
from rlcourse.preferences import Pairs

RATINGS = Path(__file__).parent / "assets" / "ratings"


class RewardModel(nn.Module):
    """A language model's trunk with a linear head on its state after the last token: one number for a text.

    trunk: a Hugging Face model that gives `last_hidden_state`. The head starts at zero. As a reward it is called with
    prompts and responses; `rate(texts)` keeps the gradient. `train()` leaves dropout off.
    """

    def __init__(self, trunk: nn.Module, tokenizer):
        super().__init__()
        self.trunk, self.tokenizer = trunk, tokenizer
        self.head = nn.Linear(trunk.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.train()

    @classmethod
    def from_pretrained(cls, name_or_path: str = "tiny", device=None) -> "RewardModel":
        """A fresh head on a language model's trunk, named as for `GPT2Policy`; or a saved reward model.

        "ratings" is the bundled reward model. A folder that `save_pretrained` wrote gives the model that it holds.
        device: default is the GPU when there is one. Raises ValueError for anything that cannot be loaded.
        """
        folder = RATINGS if name_or_path == "ratings" else name_or_path
        policy = GPT2Policy.from_pretrained(folder, device=device)
        model = cls(policy.lm.base_model, policy.tokenizer)
        saved_head = Path(folder) / "reward_head.safetensors"
        if saved_head.exists():
            model.head.load_state_dict(load_file(saved_head))
        return model.to(policy.value_head.weight.device)

    def save_pretrained(self, folder) -> None:
        """Write trunk, tokenizer and head (safetensors) so that `from_pretrained(folder)` gives this model."""
        self.trunk.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_file(self.head.state_dict(), Path(folder) / "reward_head.safetensors")

    def train(self, mode: bool = True) -> "RewardModel":
        super().train(mode)
        self.trunk.eval()
        return self

    def rate(self, texts: list[str]) -> Tensor:
        """One number for each text, [N], with its gradient; a text longer than the context is cut at its end."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts must be a list of at least one string, got {texts!r}")
        eos, config = self.tokenizer.eos_token_id, self.trunk.config.get_text_config()
        room = (getattr(config, "max_position_embeddings", None) or 2**31) - 1  # one place is the EOS's
        rows = [self.tokenizer(text, truncation=True, max_length=room)["input_ids"] + [eos] for text in texts]
        width, device = max(map(len, rows)), self.head.weight.device
        # padding stands on the right: no token looks ahead, so it changes nothing and needs no mask
        ids = torch.tensor([row + [eos] * (width - len(row)) for row in rows], device=device)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        hidden = self.trunk(input_ids=ids, use_cache=False).last_hidden_state  # [N, T, hidden]
        return self.head(hidden[torch.arange(len(rows), device=device), last].float())[:, 0]

    @torch.no_grad()
    def forward(self, prompts: list[str], responses: list[str]) -> Tensor:
        """The model as a reward: scores [B] of prompt and response together, on the CPU and without gradient."""
        return self.rate([p + r for p, r in zip(prompts, responses, strict=True)]).cpu()


def regression_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """Mean squared error between a reward model's scores and people's mean ratings. scores, ratings: [N] -> scalar."""
    _check_alike(scores=scores, ratings=ratings)
    return F.mse_loss(scores, ratings)


def discriminator_loss(human: Tensor, generated: Tensor) -> Tensor:
    """Cross-entropy of telling human from generated text by the sign of the score (Goodfellow et al. 2014, eq. 1).

    human: [N], generated: [M], scores (log-odds of being human) -> scalar; log 4 where every score is 0.
    """
    return -F.logsigmoid(human).mean() - F.logsigmoid(-generated).mean()


def fit_ratings(
    model: RewardModel,
    texts: list[str],
    ratings: Sequence[float],
    epochs: int = 1,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
) -> list[float]:
    """Train on mean ratings by `regression_loss`, from the texts' average on; returns the loss of every step.

    AdamW; the learning rate rises over the first tenth of the steps and then falls in a straight line to 0.
    """
    if len(texts) != len(ratings):
        raise ValueError(f"ratings must have one entry per text, got {len(ratings)} for {len(texts)} texts")
    target = torch.as_tensor(np.asarray(ratings), dtype=torch.float32).to(model.head.weight.device)
    nn.init.constant_(model.head.bias, target.mean().item())

    def loss(rows: list[int]) -> Tensor:
        return regression_loss(model.rate([texts[i] for i in rows]), target[rows])

    return _fit(model, [len(text) for text in texts], loss, epochs, lr, batch_size, seed)


def fit_pairs(
    model: RewardModel, pairs: Pairs, epochs: int = 1, lr: float = 1e-3, batch_size: int = 16, seed: int = 0
) -> list[float]:
    """Train on comparisons by `bradley_terry_loss`, with their probabilities; otherwise as `fit_ratings`."""
    probability = pairs.probability.to(model.head.weight.device)

    def loss(rows: list[int]) -> Tensor:
        some = pairs[rows]
        preferred, rejected = model.rate(some.preferred + some.rejected).chunk(2)
        return bradley_terry_loss(preferred, rejected, probability[rows])

    lengths = [max(len(a), len(b)) for a, b in zip(pairs.preferred, pairs.rejected)]
    return _fit(model, lengths, loss, epochs, lr, batch_size, seed)


def _fit(
    model, lengths: list[int], loss_of: Callable, epochs: int, lr: float, batch_size: int, seed: int
) -> list[float]:
    """Minimise `loss_of(rows)` over shuffled batches of like length, so that little is padding."""
    rng = random.Random(seed)
    # a linear map of the last state may learn faster than the trunk below it
    groups = [dict(params=model.trunk.parameters(), lr=lr), dict(params=model.head.parameters(), lr=5 * lr)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, fused=True)
    batches = []
    for _ in range(epochs):
        order = sorted(range(len(lengths)), key=lambda i: lengths[i] + 16 * rng.random())
        epoch = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        batches += rng.sample(epoch, len(epoch))
    total = len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1, (k + 1) / (0.1 * total)) * (1 - k / total))
    losses = []
    for rows in progress(batches):
        loss = loss_of(rows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def pair_accuracy(preferred: Tensor, rejected: Tensor) -> float:
    """Share of pairs in which the preferred text scores higher; equal scores count a half. Both [N]."""
    _check_alike(preferred=preferred, rejected=rejected)
    return ((preferred > rejected).float() + (preferred == rejected).float() / 2).mean().item()


def reliability(probability: Tensor, outcome: Tensor, bins: int = 10) -> list[dict[str, float]]:
    """What happened when the model said p: for each bin of predictions their mean, the outcomes' mean, the count.

    probability, outcome: [N] in [0, 1] (an outcome may be a share of votes). Empty bins are left out.
    """
    _check_alike(probability=probability, outcome=outcome)
    bin_of = (probability * bins).long().clamp(max=bins - 1)
    rows = []
    for b in range(bins):
        inside = bin_of == b
        if inside.any():
            said, happened = probability[inside].mean().item(), outcome[inside].float().mean().item()
            rows.append(dict(said=said, happened=happened, count=int(inside.sum())))
    return rows


def calibration_error(probability: Tensor, outcome: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): mean |said - happened| over the bins, weighted by count."""
    table = reliability(probability, outcome, bins)
    return sum(row["count"] * abs(row["said"] - row["happened"]) for row in table) / len(probability)


def lower_bound(rewards: list[Callable], k: float = 1.0) -> Callable:
    """A cautious reward: mean minus k standard deviations (population) over an ensemble (Coste et al. 2023)."""

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        scores = torch.stack([reward(prompts, responses) for reward in rewards])  # [models, B]
        return scores.mean(0) - k * scores.std(0, correction=0)

    return score


def _check_alike(**tensors: Tensor) -> None:
    (a, x), (b, y) = tensors.items()
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"{a} and {b} must be of one shape [N], got {tuple(x.shape)} and {tuple(y.shape)}")
