"""A recurrent language model as a policy: embedding, GRU or LSTM, projection; small enough to train while you watch."""

import torch
from torch import Tensor, nn


class RNNPolicy(nn.Module):
    """States are texts as token ids, actions the next token. inputs of `evaluate`: prompts [B, P], P may be 0.

    kind: "gru" (Cho et al. 2014) or "lstm" (Hochreiter and Schmidhuber 1997). A start token of its own is fed first.
    """

    def __init__(self, vocab_size: int, hidden_size: int = 64, kind: str = "gru"):
        super().__init__()
        if kind not in ("gru", "lstm"):
            raise ValueError(f'kind must be "gru" or "lstm", got {kind!r}')
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size + 1, hidden_size)  # the last row is the start token
        self.rnn = (nn.GRU if kind == "gru" else nn.LSTM)(hidden_size, hidden_size, batch_first=True)
        self.projection = nn.Linear(hidden_size, vocab_size)
        self.value_head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def start(self, inputs: Tensor) -> tuple:
        """The state after the start token and the prompts [B, P]: the last output [B, H] and the RNN's memory."""
        outputs, memory = self.rnn(self.embedding(self._with_start(inputs)))
        return outputs[:, -1], memory

    def predict(self, state: tuple) -> tuple[Tensor, Tensor]:
        """Logits [B, V] and values [B] in the state."""
        return self.projection(state[0]), self.value_head(state[0])[..., 0]

    def append(self, state: tuple, actions: Tensor) -> tuple:
        """The transition: the state after appending a token [B]."""
        outputs, memory = self.rnn(self.embedding(actions)[:, None], state[1])
        return outputs[:, 0], memory

    def logits(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """[B, T, V]: what each action was drawn from, all T in one pass."""
        return self.projection(self._outputs(inputs, actions))

    def evaluate(self, inputs: Tensor, actions: Tensor, with_entropy: bool = False) -> tuple[Tensor, ...]:
        """actions: [B, T] -> logprobs, values and, if asked for, entropies: [B, T], in nats."""
        outputs = self._outputs(inputs, actions)
        log_pi = self.projection(outputs).log_softmax(-1)
        logprobs, values = log_pi.gather(-1, actions[..., None])[..., 0], self.value_head(outputs)[..., 0]
        return (logprobs, values, -(log_pi.exp() * log_pi).sum(-1)) if with_entropy else (logprobs, values)

    def _with_start(self, tokens: Tensor) -> Tensor:
        if tokens.device.type == "cpu" and ((tokens < 0) | (tokens >= self.vocab_size)).any():
            raise ValueError(
                f"inputs and actions must hold tokens 0 to {self.vocab_size - 1}, got {tokens.min()} to {tokens.max()}"
            )
        return torch.cat([tokens.new_full((len(tokens), 1), self.vocab_size), tokens], dim=1)

    def _outputs(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """[B, T, H]: what the RNN has read before each action; the last action conditions nothing."""
        if inputs.ndim != 2 or actions.ndim != 2 or len(inputs) != len(actions):
            shapes = tuple(inputs.shape), tuple(actions.shape)
            raise ValueError(f"inputs must be [B, P] and actions [B, T], got {shapes[0]} and {shapes[1]}")
        outputs, _ = self.rnn(self.embedding(self._with_start(torch.cat([inputs, actions[:, :-1]], dim=1))))
        return outputs[:, -actions.shape[1] :]
