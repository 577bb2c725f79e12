"""Launched by test_train.py in one process or in two: trains, and keeps every rollout and gradient of every process."""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlcourse import train
from rlcourse.gpt2 import GPT2Policy
from rlcourse.settings import TrainConfig

torch.set_num_threads(1)
ppo_update, from_pretrained, kept = train.ppo_update, GPT2Policy.from_pretrained, {}


def with_frequent_end(*args) -> GPT2Policy:
    policy = from_pretrained(*args)
    policy.tokenizer.eos_token = "."  # so that many responses end early
    return policy


def recorded(policy, optimizer, rollout, advantages, returns, cfg) -> dict[str, float]:
    """As `ppo_update`; keeps the rollout, and the gradient as it is at every step."""
    columns = {f.name: getattr(rollout, f.name) for f in dataclasses.fields(rollout) if f.name != "inputs"}
    columns |= dict(ids=rollout.inputs.ids, prompt_mask=rollout.inputs.mask, advantages=advantages, returns=returns)
    number = sum(name.endswith(" actions") for name in kept)
    kept.update({f"{number} {name}": x.clone() for name, x in columns.items()})

    def keep(*_) -> None:
        step = sum(name.startswith("gradient") for name in kept)
        kept[f"gradient {step}"] = torch.cat([p.grad.flatten() for p in policy.parameters()])

    hook = optimizer.register_step_pre_hook(keep)
    stats = ppo_update(policy, optimizer, rollout, advantages, returns, cfg)
    hook.remove()
    return stats


if __name__ == "__main__":
    train.ppo_update, GPT2Policy.from_pretrained = recorded, with_frequent_end
    run = train.prepare(TrainConfig(**json.loads(sys.argv[1])))
    train.train(run)
    out, accelerator = Path(run.config.out), run.accelerator
    save_file(kept, out / f"process_{accelerator.process_index}_of_{accelerator.num_processes}.safetensors")
