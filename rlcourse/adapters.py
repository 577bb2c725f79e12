"""Low-rank adapters (LoRA, Hu et al. 2021) on a policy, through peft: few weights to train, and no second model."""

import warnings

import torch
from torch import Tensor

from rlcourse.gpt2 import GPT2Policy


def add_adapters(policy: GPT2Policy, rank: int) -> "WithoutAdapters":
    """Put adapters on every linear layer of the policy, and return the reference policy.

    Only adapters and value head are trained from then on. The reference is the same model with its adapters switched
    off, so there is no second copy in memory. Dropout stays off.
    """
    from peft import LoraConfig, get_peft_model  # here, since it takes seconds to import

    transposed = any(type(module).__name__ == "Conv1D" for module in policy.lm.modules())  # GPT-2 stores [in, out]
    adapters = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a setting by its former name
        policy.lm = get_peft_model(policy.lm, adapters)
    policy.train()  # what is new in it has no dropout either
    return WithoutAdapters(policy)


class WithoutAdapters:
    """The reference policy of a policy with adapters: the model as it was before they came."""

    def __init__(self, policy: GPT2Policy):
        self.policy = policy

    @torch.no_grad()
    def evaluate(self, *args, **kwargs) -> tuple[Tensor, ...]:
        """As `GPT2Policy.evaluate`."""
        with self.policy.lm.disable_adapter():
            return self.policy.evaluate(*args, **kwargs)


def merge_adapters(policy: GPT2Policy) -> None:
    """Add what the adapters have learned to the weights, so that a plain model is left; without adapters, nothing."""
    if hasattr(policy.lm, "merge_and_unload"):
        policy.lm = policy.lm.merge_and_unload()
