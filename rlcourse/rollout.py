"""What a policy acts on and what it did: two small containers of batch-first tensors, and sampling token by token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """What GPT-2's actions are conditioned on, the sampling temperature included.

    ids: [B, P] token ids, padded on the left. mask: [B, P], 1 = a real token. temperature: [B], each above 0.
    blocked: [B, V] bool or None, True = this token is never sampled and has probability 0 when scored.
    """

    ids: Tensor
    mask: Tensor
    temperature: Tensor
    blocked: Tensor | None = None

    def __post_init__(self):
        if self.ids.ndim != 2 or self.mask.shape != self.ids.shape or self.temperature.shape != self.ids.shape[:1]:
            shapes = [tuple(x.shape) for x in (self.ids, self.mask, self.temperature)]
            raise ValueError(f"ids and mask must be [B, P] and temperature [B], got {shapes}")
        if self.temperature.device.type == "cpu" and not (self.temperature > 0).all():
            raise ValueError(f"temperature must be positive, got {self.temperature.tolist()}")
        if (blocked := self.blocked) is None:
            return
        if blocked.dtype != torch.bool or blocked.ndim != 2 or len(blocked) != len(self.ids):
            raise ValueError(
                f"blocked must be [{len(self.ids)}, V] of torch.bool, got {tuple(blocked.shape)} of {blocked.dtype}"
            )
        if blocked.device.type == "cpu" and blocked.all(1).any():
            raise ValueError(f"blocked leaves row {int(blocked.all(1).nonzero()[0])} no token to sample")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i) -> "Prompts":
        i = [i] if isinstance(i, int) else i
        return self._apply(lambda x: x[i])

    def to(self, device) -> "Prompts":
        return self._apply(lambda x: x.to(device))

    def _apply(self, function) -> "Prompts":
        return Prompts(**{name: x if x is None else function(x) for name, x in vars(self).items()})


@dataclass(frozen=True)
class Rollout:
    """A batch of sampled responses or episodes.

    inputs: whatever the policy needs to score the actions again; it supports `[i]` and `.to` as a tensor does.
    actions, mask, old_logprobs, values: [B, T], as they were when sampled. ref_logprobs: [B, T] or None.
    `rollout[i]` is a minibatch: i is a row number, a slice, or a tensor of row numbers.
    """

    inputs: Any
    actions: Tensor
    mask: Tensor
    old_logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor | None = None

    def __post_init__(self):
        for name in ("mask", "old_logprobs", "values", "ref_logprobs"):
            x = getattr(self, name)
            if x is not None and x.shape != self.actions.shape:
                raise ValueError(
                    f"{name} must have the shape of actions {tuple(self.actions.shape)}, got {tuple(x.shape)}"
                )
        if len(self.inputs) != len(self.actions):
            raise ValueError(f"inputs has {len(self.inputs)} rows, actions {len(self.actions)}")

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, i) -> "Rollout":
        i = [i] if isinstance(i, int) else i
        return self._apply(lambda x: x[i])

    def to(self, device) -> "Rollout":
        return self._apply(lambda x: x.to(device))

    def _apply(self, function) -> "Rollout":
        return Rollout(**{name: x if x is None else function(x) for name, x in vars(self).items()})


@torch.no_grad()
def sample_tokens(
    policy, inputs: Tensor, max_new_tokens: int, eos: int | None = None, generator: torch.Generator | None = None
) -> Rollout:
    """Let a small policy (`TabularPolicy`, `RNNPolicy`) write one text for each prompt of `inputs` [B, P]; P may be 0.

    -> Rollout with actions [B, max_new_tokens]; what follows EOS, which itself counts, is masked and holds EOS.
    The policy says where it starts, what it predicts in a state, and which state appending a token leads to.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
    if inputs.ndim != 2 or inputs.is_floating_point():
        raise ValueError(f"inputs must be [B, P] token ids, got {inputs.dtype} of shape {tuple(inputs.shape)}")
    state, columns = policy.start(inputs), []
    alive = torch.ones(len(inputs), device=inputs.device)
    for _ in range(max_new_tokens):
        logits, values = policy.predict(state)  # [B, V], [B]
        log_pi = logits.log_softmax(-1)
        action = torch.multinomial(log_pi.exp(), 1, generator=generator)[:, 0]
        if eos is not None:
            action = torch.where(alive > 0, action, eos)
        logprob = log_pi.gather(-1, action[:, None])[:, 0]
        columns.append((action, alive.to(values.dtype), logprob * alive, values * alive))
        if eos is not None:
            alive = alive * (action != eos)
        state = policy.append(state, action)
    actions, mask, logprobs, values = (torch.stack(column, dim=1) for column in zip(*columns))  # [B, T]
    return Rollout(inputs, actions, mask, logprobs, values)
