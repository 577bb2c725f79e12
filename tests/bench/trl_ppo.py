"""TRL 1.12's PPOTrainer on the course's model, prompts and reward: what the comparisons with it share.

Run by `.venv-peers/bin/python` after `make peers`.
"""

import tempfile
import time
from types import SimpleNamespace

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

from rlcourse.gpt2 import GPT2Policy

PAD = "\x00"  # a byte that no text here holds: with EOS as padding, TRL would take our BOS, the same token, for padding


class TextReward(nn.Module):
    """A reward on texts in the form TRL asks for: a backbone, and a score for every position."""

    base_model_prefix = "backbone"

    def __init__(self, reward, tokenizer, context: int):
        super().__init__()
        self.reward, self.tokenizer, self.context = reward, tokenizer, context
        self.backbone = self.read

    def read(self, input_ids, attention_mask, **_):
        responses = [
            self.tokenizer.decode(row[m], skip_special_tokens=True)
            for row, m in zip(input_ids[:, self.context :], attention_mask[:, self.context :].bool())
        ]
        scores = self.reward([""] * len(responses), responses)
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1)])

    def score(self, hidden):
        return hidden


class Clock(TrainerCallback):
    """The seconds of each iteration, and what was logged for it."""

    def __init__(self):
        self.start, self.seconds, self.logs = 0.0, [], []

    def on_train_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        self.start = now

    def on_log(self, args, state, control, logs=None, **_):
        self.logs.append(logs)


def trainer(policy: GPT2Policy, prompts: list[str], reward, *, iterations: int, batch: int, new_tokens: int,
            epochs: int, minibatches: int, learning_rate: float, kl_coef: float, stop: bool, seed: int):  # fmt: skip
    """A PPOTrainer with our settings. Prompts must have one length in tokens, so that no prompt is padded."""
    ids = [policy.tokenizer(prompt)["input_ids"] for prompt in prompts]
    context = len(ids[0])
    assert all(len(row) == context for row in ids)
    policy.tokenizer.pad_token = policy.tokenizer.convert_ids_to_tokens(policy.tokenizer(PAD)["input_ids"])[-1]
    lm = policy.lm
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder)
        value_model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    nn.init.zeros_(value_model.score.weight)  # as our value head begins
    args = PPOConfig(
        output_dir=tempfile.mkdtemp(), report_to=[], save_strategy="no", num_sample_generations=0, seed=seed,
        # accumulating 1: the trainer then takes epochs x minibatches steps, as we do, and not one an epoch
        total_episodes=iterations * batch, per_device_train_batch_size=batch, gradient_accumulation_steps=1,
        num_mini_batches=minibatches, num_ppo_epochs=epochs,
        local_rollout_forward_batch_size=batch, response_length=new_tokens, temperature=1.0,
        stop_token="eos" if stop else None, learning_rate=learning_rate, lr_scheduler_type="constant",
        kl_coef=kl_coef, cliprange=0.2, cliprange_value=1e9, vf_coef=0.5, gamma=1.0, lam=1.0, whiten_rewards=False,
        max_grad_norm=1.0, optim="adamw_torch_fused", bf16=False, use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True, logging_steps=1, gradient_checkpointing=False,
    )  # fmt: skip
    clock = Clock()
    found = PPOTrainer(
        args, policy.tokenizer, lm, None, TextReward(reward, policy.tokenizer, context),
        Dataset.from_dict({"input_ids": ids}), value_model, callbacks=[clock],
        eval_dataset=Dataset.from_dict({"input_ids": ids[:batch]}),
    )  # fmt: skip
    for silent in (PrinterCallback, ProgressCallback):
        found.remove_callback(silent)
    return found, clock
