"""Writing a text as a Gymnasium environment: the observation is the text so far, an action appends one token."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


class TextEnv(gymnasium.Env):
    """Texts of at most `horizon` tokens; `gymnasium.make("rlcourse/Text-v0", ...)` after this module is imported.

    vocab: the V symbols, as one string or a list of words. reward: as for `TokenMDP`, (actions [1, T], mask [1, T]) ->
    [1], a score paid at the text's last token, or [1, T], paid token by token. eos: the token that ends a text, if any.
    noise: standard deviation of the normal noise added to the reward of every step.

    Observation: [T] tokens, V where nothing is written yet; `MultiDiscrete`, because tokens are names, not quantities.
    Action: the next token. A text ends at EOS or with its last place filled; both belong to the task and can be seen
    in the observation, so both are `terminated`. A time limit set from outside (`max_episode_steps`) is `truncated`.
    `reset(seed=)` seeds the noise, the only chance there is. `render_mode="ansi"`: the text as a string.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (Gymnasium wants it here)

    def __init__(
        self,
        vocab: Sequence[str],
        horizon: int,
        reward: Callable[[Tensor, Tensor], Tensor],
        eos: int | None = None,
        noise: float = 0.0,
        render_mode: str | None = None,
    ):
        if len(vocab) < 2 or horizon < 1:
            raise ValueError(f"vocab must have at least 2 symbols and horizon be at least 1, got {vocab!r}, {horizon}")
        if eos is not None and not 0 <= eos < len(vocab):
            raise ValueError(f"eos must be a token, 0 to {len(vocab) - 1}, or None, got {eos}")
        if not noise >= 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        if render_mode not in (None, "ansi"):
            raise ValueError(f'render_mode must be None or "ansi", got {render_mode!r}')
        self.vocab, self.horizon, self.eos, self.noise, self.render_mode = vocab, horizon, eos, noise, render_mode
        self._reward, self._over = reward, True
        self._tokens, self._length = np.full(horizon, len(vocab)), 0
        self.observation_space = spaces.MultiDiscrete([len(vocab) + 1] * horizon)
        self.action_space = spaces.Discrete(len(vocab))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an empty text -> observation [T], {}."""
        super().reset(seed=seed)
        self._tokens, self._length, self._over = np.full(self.horizon, len(self.vocab)), 0, False
        return self._tokens.copy(), {}

    def step(self, action) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append a token -> observation [T], reward, terminated, truncated (always False here), {}."""
        if self._over:
            raise gymnasium.error.ResetNeeded("the text is over, or not begun: call reset() first")
        token = int(action)
        if not 0 <= token < len(self.vocab):
            raise ValueError(f"action must be a token, 0 to {len(self.vocab) - 1}, got {action}")
        self._tokens[self._length] = token
        self._length += 1
        self._over = token == self.eos or self._length == self.horizon
        reward = self._pay() + (self.noise * self.np_random.standard_normal() if self.noise else 0.0)
        return self._tokens.copy(), reward, self._over, False, {}

    def render(self) -> str | None:
        """The text so far, with `_` for each place that is still open; None without a render mode."""
        if self.render_mode is None:
            return None
        words = [self.vocab[token] for token in self._tokens[: self._length]]
        words += [] if self._over and self._length else ["_"] * (self.horizon - self._length)
        return ("" if all(len(word) == 1 for word in self.vocab) else " ").join(words)

    def _pay(self) -> float:
        """What the last token earns."""
        mask = torch.arange(self.horizon)[None] < self._length  # [1, T]
        actions = torch.where(mask, torch.from_numpy(self._tokens)[None], 0 if self.eos is None else self.eos)
        paid = torch.as_tensor(self._reward(actions, mask.double()), dtype=torch.float64)
        if paid.shape not in ((1,), (1, self.horizon)):
            raise ValueError(f"reward must return [1] or [1, {self.horizon}] for one text, got {tuple(paid.shape)}")
        amount = paid[0, self._length - 1] if paid.ndim == 2 else paid[0] if self._over else paid.new_zeros(())
        if not amount.isfinite():
            raise ValueError(f"reward must be finite, got {amount.item()} for {actions[0].tolist()}")
        return amount.item()


def state_number(observation, vocab_size: int) -> int:
    """The number that `TokenMDP` gives to the text of an observation [T]: 0 when empty, then s * V + token + 1."""
    state = 0
    for token in observation:
        if not 0 <= token <= vocab_size:
            raise ValueError(f"observation must hold 0 to {vocab_size}, got {observation}")
        if token == vocab_size:  # not written yet
            break
        state = state * vocab_size + int(token) + 1
    return state


gymnasium.register("rlcourse/Text-v0", entry_point="rlcourse.text_env:TextEnv")
