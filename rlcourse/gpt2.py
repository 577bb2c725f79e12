"""GPT-2, or any Hugging Face causal language model, as a policy with a value head."""

import copy
from collections.abc import Collection
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.activations import NewGELUActivation
from transformers.utils import logging as transformers_logging

from rlcourse.action_logprobs import action_logprobs
from rlcourse.rollout import Prompts, Rollout

TINY = Path(__file__).parent / "assets" / "tiny"


class GPT2Policy(nn.Module):
    """A causal language model and a linear value head on its last hidden state; states are texts, actions tokens.

    lm: the `AutoModelForCausalLM`. value_head: starts at zero. tokenizer: the model's own. `dtype` (torch.bfloat16 or
    torch.float16) turns on autocast on CUDA; weights stay float32. `train()` keeps dropout off: with it on, a second
    look at the same tokens gives other log-probabilities, and the ratio is not 1 before the first update.
    """

    def __init__(self, lm: nn.Module, tokenizer, dtype: torch.dtype | None = None):
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer has no EOS token, so a response could never end; set tokenizer.eos_token")
        for module in [m for m in lm.modules() if isinstance(getattr(m, "act", None), NewGELUActivation)]:
            module.act = nn.GELU("tanh")  # the same function as one operation, which keeps one tensor for the way back
        self.lm, self.tokenizer, self.dtype = lm, tokenizer, dtype
        self.value_head = nn.Linear(lm.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.train()

    @classmethod
    def from_pretrained(cls, name_or_path: str = "tiny", device=None, dtype=None) -> "GPT2Policy":
        """The bundled model ("tiny"), a Hugging Face causal LM id such as "gpt2", or a folder holding one.

        device: default is the GPU when there is one. Raises ValueError, naming what is accepted, for anything else.
        """
        folder = TINY if name_or_path == "tiny" else name_or_path
        try:
            with _no_bars() if Path(folder).is_dir() else nullcontext():  # a bar is for downloads
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                lm = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            raise ValueError(
                f'cannot load {str(name_or_path)!r}: expected "tiny", a folder with a saved causal language model, or '
                'the id of one on the Hugging Face hub such as "gpt2" (its first use needs a network connection). '
                f"The loader said: {str(error).splitlines()[0]}"
            ) from error
        policy = cls(lm, tokenizer, dtype)
        saved_head = Path(folder) / "value_head.safetensors"
        if saved_head.exists():
            policy.value_head.load_state_dict(load_file(saved_head))
        return policy.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def save_pretrained(self, folder) -> None:
        """Write model, tokenizer and value head (safetensors) so that `from_pretrained(folder)` gives this policy."""
        with _no_bars():
            self.lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_file(self.value_head.state_dict(), Path(folder) / "value_head.safetensors")

    def frozen_copy(self) -> "GPT2Policy":
        """A reference policy: the same weights, which nothing will change."""
        return copy.deepcopy(self).requires_grad_(False)

    def train(self, mode: bool = True) -> "GPT2Policy":
        super().train(mode)
        self.lm.eval()  # dropout stays off
        return self

    @property
    def context(self) -> int:
        """The longest prompt plus response, in tokens."""
        config = self.lm.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or 2**31

    def encode(self, prompts: list[str], temperature: float = 1.0, blocked: Collection[int] | None = None) -> Prompts:
        """Prompts exactly as the tokenizer encodes them, padded on the left, on the policy's device.

        blocked: ids of tokens which no response may hold; EOS, without which none could end, is not among them.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts must be a list of at least one string, got {prompts!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        rows = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        if not all(rows):
            raise ValueError(f"prompt {rows.index([])} ({prompts[rows.index([])]!r}) gives no token")
        width, device = max(map(len, rows)), self.value_head.weight.device
        padded = [[self.tokenizer.eos_token_id] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        scale = torch.full((len(rows),), float(temperature), device=device)
        forbidden = None if blocked is None else self._blocked_row(blocked).to(device).expand(len(rows), -1)  # [B, V]
        return Prompts(torch.tensor(padded, device=device), torch.tensor(mask, device=device), scale, forbidden)

    def _blocked_row(self, blocked: Collection[int]) -> Tensor:
        V, eos = self.lm.config.get_text_config().vocab_size, self.tokenizer.eos_token_id
        expected = f"blocked must be a list of token ids, whole numbers from 0 to {V - 1}, got"
        if not isinstance(blocked, Collection):
            raise ValueError(f"{expected} {type(blocked).__name__}")
        for token in blocked:
            if type(token) is not int or not 0 <= token < V:
                raise ValueError(f"{expected} one with {token!r} in it")
        if eos in blocked:
            raise ValueError(f"blocked holds {eos}, the id of EOS, so a response could never end")
        return torch.zeros(V, dtype=torch.bool).index_fill(0, torch.tensor(list(blocked), dtype=torch.long), True)

    def encode_responses(self, texts: list[str], end: bool = True) -> tuple[Tensor, Tensor]:
        """Texts as the actions that would write them, the other way round than `response_texts`.

        -> actions [B, T] token ids, mask [B, T]. With `end`, EOS follows each text and counts; what comes after holds
        EOS and is masked. T is at least 1. Raises ValueError when a text is longer than the context, or holds EOS
        already and is to get another.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts must be a list of at least one string, got {texts!r}")
        eos, device = self.tokenizer.eos_token_id, self.value_head.weight.device
        rows = [list(row) for row in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for i, row in enumerate(rows):
            if end and eos in row:
                raise ValueError(f"text {i} holds {self.tokenizer.eos_token!r}, which is put after it anyway")
            row += [eos] * end
            if len(row) > self.context:
                raise ValueError(f"text {i} has {len(row)} tokens, more than the model's context of {self.context}")
        width = max(1, *map(len, rows))
        actions = torch.tensor([row + [eos] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows], device=device)
        return actions, mask

    def evaluate(self, inputs: Prompts, actions: Tensor, with_entropy: bool = False) -> tuple[Tensor, ...]:
        """Score given actions: log pi(action_t | prompt, actions before t) at the sampling temperature, and V.

        actions: [B, T] -> logprobs, values and, if asked for, entropies: [B, T], float32, in nats.
        A token that `inputs` blocks has log-probability -inf, and the others share its part.
        """
        logits, values = self._forward(inputs, actions)
        logprobs, *entropies = action_logprobs(logits, actions, with_entropy)
        return logprobs, values, *entropies

    def logits(self, inputs: Prompts, actions: Tensor) -> Tensor:
        """[B, T, V] float32: what each action was drawn from, tempered already, with -inf for blocked tokens."""
        return self._forward(inputs, actions)[0]

    def _forward(self, inputs: Prompts, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and values [B, T] of the T positions that choose the actions."""
        T = actions.shape[1]
        ids = torch.cat([inputs.ids, actions[:, :-1]], dim=1)  # [B, P+T-1]: the last action conditions nothing
        mask = torch.cat([inputs.mask, torch.ones_like(actions[:, :-1])], dim=1)
        output = self._run(
            input_ids=ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=T, use_cache=False
        )
        return _scaled(output.logits, inputs), self._values(output.hidden_states[-1][:, -T:])

    def _run(self, **kwargs):
        with torch.autocast(self.value_head.weight.device.type, self.dtype, enabled=self.autocasts):
            return self.lm(output_hidden_states=True, **kwargs)

    @property
    def autocasts(self) -> bool:
        """Whether forward passes run in `dtype`: only where one was asked for, and only on CUDA."""
        return self.dtype is not None and self.value_head.weight.is_cuda

    def _values(self, hidden: Tensor) -> Tensor:
        return self.value_head(hidden.float())[..., 0]


@contextmanager
def _no_bars():
    """Without the progress bars of transformers."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _positions(mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that padding on the left changes nothing."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _scaled(logits: Tensor, inputs: Prompts) -> Tensor:
    """What is sampled from and scored alike: logits at the temperature, -inf where a token is blocked."""
    logits = logits.float() / inputs.temperature[:, None, None]  # [B, T, V]
    return logits if inputs.blocked is None else logits.masked_fill(inputs.blocked[:, None], -torch.inf)


@torch.no_grad()
def sample_responses(
    policy: GPT2Policy,
    prompts: list[str],
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    blocked: Collection[int] | None = None,
    uniforms: Tensor | None = None,
) -> Rollout:
    """Sample one response per prompt from softmax(logits / temperature), with nothing cut off (no top-k, no top-p).

    -> Rollout with actions [B, T], T <= max_new_tokens. A row ends with EOS, an action that counts; after it actions
    hold EOS and mask, old_logprobs and values are 0. Log-probabilities and values come out of the sampling pass
    itself; only under autocast are they computed again by `evaluate`, since there the two differ.
    Row b's token t is the word at which the summed probabilities pass uniforms[b, t]: the same numbers write the same
    text, whatever else is in the batch. uniforms: [B, max_new_tokens] in [0, 1); drawn when left out, with `generator`
    (on the policy's device; torch's global one by default). blocked: ids of tokens that no response may hold;
    `rollout.inputs` keeps them, so that policy and reference score exactly what was sampled.
    Raises ValueError when a prompt gives no token or prompt and response together exceed the model's context.
    """
    inputs = policy.encode(prompts, temperature, blocked)
    _check_room(policy, inputs, max_new_tokens)
    uniforms = _uniforms(inputs, max_new_tokens, generator, uniforms)
    actions = torch.full_like(uniforms, policy.tokenizer.eos_token_id, dtype=torch.long)  # [B, T], as what follows
    mask, logprobs, values = (torch.zeros_like(uniforms, dtype=torch.float32) for _ in range(3))
    rows, alive, cache = torch.arange(len(inputs), device=actions.device), torch.ones_like(mask[:, 0]), None
    ids, attention, conditions = inputs.ids, inputs.mask, inputs
    for t in range(max_new_tokens):
        output = policy._run(
            input_ids=ids, attention_mask=attention, position_ids=_positions(attention)[:, -ids.shape[1] :],
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        if (cache := getattr(output, "past_key_values", None)) is None:
            raise ValueError(f"{type(policy.lm).__name__} keeps no past_key_values; sampling needs such a cache")
        log_pi = _scaled(output.logits, conditions)[:, -1].log_softmax(-1)  # [rows, V]
        action = torch.where(alive > 0, _inverse_cdf(log_pi, uniforms[rows, t]), actions[rows, t])
        actions[rows, t], mask[rows, t] = action, alive
        logprobs[rows, t] = log_pi.gather(-1, action[:, None])[:, 0] * alive
        values[rows, t] = policy._values(output.hidden_states[-1][:, -1]) * alive
        alive = alive * (action != policy.tokenizer.eos_token_id)
        ids, attention = action[:, None], torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
        if t % 8 == 7:  # a host read, so not at every token: rows that have ended leave the batch
            going = alive.nonzero()[:, 0]
            if len(going) == 0:
                break
            if len(going) < len(alive):
                cache.batch_select_indices(going)
                rows, alive, ids, attention = rows[going], alive[going], ids[going], attention[going]
                conditions = conditions[going]
    T = int(mask.sum(1).max())
    actions, mask, logprobs, values = (x[:, :T] for x in (actions, mask, logprobs, values))
    if policy.autocasts:
        logprobs, values = (torch.where(mask > 0, x, 0) for x in policy.evaluate(inputs, actions))
    return Rollout(inputs, actions, mask, logprobs, values)


def _check_room(policy: GPT2Policy, inputs: Prompts, max_new_tokens: int) -> None:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
    if inputs.ids.shape[1] + max_new_tokens > policy.context:
        longest = int(inputs.mask.sum(1).argmax())
        raise ValueError(
            f"prompt {longest} has {inputs.ids.shape[1]} tokens; with max_new_tokens={max_new_tokens} that exceeds the "
            f"model's context of {policy.context}"
        )


def _uniforms(inputs: Prompts, T: int, generator: torch.Generator | None, given: Tensor | None) -> Tensor:
    """[B, T] in float64: float32 cannot tell apart the rarest words of a large vocabulary."""
    if given is None:
        return torch.rand(len(inputs), T, generator=generator, device=inputs.ids.device, dtype=torch.float64)
    if given.shape != (len(inputs), T) or not given.is_floating_point():
        raise ValueError(f"uniforms must be [B, max_new_tokens] = {(len(inputs), T)} numbers in [0, 1), "
                         f"got {given.dtype} of shape {tuple(given.shape)}")  # fmt: skip
    return given.to(inputs.ids.device, torch.float64)


def _inverse_cdf(log_pi: Tensor, uniform: Tensor) -> Tensor:
    """The first word at which the summed probabilities exceed `uniform`: log_pi [B, V], uniform [B] -> [B]."""
    summed = log_pi.exp().cumsum(-1, dtype=torch.float64)
    # `right`: a word of probability 0, where the sum stands still, is never the first to exceed anything
    return torch.searchsorted(summed, (uniform * summed[:, -1])[:, None], right=True)[:, 0].clamp(
        max=log_pi.shape[1] - 1
    )


def response_texts(policy: GPT2Policy, rollout: Rollout) -> list[str]:
    """The responses as text, [B] strings: counted actions only, special tokens such as EOS left out."""
    lengths = rollout.mask.sum(1).long().tolist()
    rows = [row[:n] for row, n in zip(rollout.actions.tolist(), lengths)]
    return policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
