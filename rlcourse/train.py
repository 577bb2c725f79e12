"""Long PPO runs on a language model from the command line, on one process or on several.

    python -m rlcourse.train --model gpt2 --reward sentiment --iterations 500 --out runs/happy
    python -m rlcourse.train --out runs/happy --resume
    accelerate launch --multi_gpu --num_processes 4 -m rlcourse.train --model gpt2 --batch 256 --out runs/happy
    ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m rlcourse.train --out runs/two
    tensorboard --logdir runs

The loop calls the functions that the notebooks show. A run that was killed goes on with `--resume`, on the CPU bit for
bit. Several processes (`accelerate config` sets up GPUs and machines, all of which must see `--out`) draw the responses
that one process would draw.
"""

import sys

from rlcourse.settings import TrainConfig, parse, resumed

if __name__ == "__main__":
    GIVEN, RESUME = parse()  # before the slow imports: a typo fails at once

import importlib
import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from tqdm.auto import tqdm

from rlcourse import checkpoint
from rlcourse.adapters import add_adapters, merge_adapters
from rlcourse.checkpoint import Checkpoint, CheckpointError
from rlcourse.data import load_prompts
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.parallel import check_shares, gather_rollout, keyed_random, keyed_uniforms, my_rows, share
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.records import Records
from rlcourse.returns import AdaptiveKL, gae, kl_shaped_rewards
from rlcourse.rewards import Reward, combine, keyword_reward, sentiment_reward
from rlcourse.rollout import Rollout


@dataclass(frozen=True)
class Run:
    """What the loop works with. shared: the policy as `ppo_update` sees it. controller: has kl_coef and update()."""

    config: TrainConfig
    accelerator: Accelerator
    policy: GPT2Policy
    shared: object
    ref_policy: object
    reward: Reward
    prompts: list[str]
    optimizer: torch.optim.Optimizer
    controller: object
    done: int = 0  # iterations


def train(run: Run) -> GPT2Policy:
    """Train to the last iteration; checkpoints, history, samples and the final model are left in `config.out`.

    Raises CheckpointError when something cannot be written, FloatingPointError when numbers are no longer finite; the
    last checkpoint is good then.
    """
    config, policy, eos = run.config, run.policy, run.policy.tokenizer.eos_token_id
    mine = my_rows(config.batch, run.accelerator)  # this process's rows of the batch
    cfg = PPOConfig(
        epochs=config.epochs, minibatches=config.minibatches, clip_eps=config.clip_eps, vf_coef=config.vf_coef,
        ent_coef=config.ent_coef, max_grad_norm=config.max_grad_norm,
    )  # fmt: skip
    with open_records(run) as records:
        for iteration in (bar := progress(run)):
            set_rates(run.optimizer, iteration, config)
            prompts = keyed_random(config.seed, iteration, "prompts").choices(run.prompts, k=config.batch)
            my_prompts = prompts[mine.start : mine.stop]
            uniforms = keyed_uniforms(config.seed, iteration, mine, config.new_tokens)
            rollout = sample_responses(policy, my_prompts, config.new_tokens, config.temperature, uniforms=uniforms)
            ref_logprobs, _ = run.ref_policy.evaluate(rollout.inputs, rollout.actions)
            scores = run.reward(my_prompts, response_texts(policy, rollout))
            rollout = replace(rollout, ref_logprobs=ref_logprobs)
            rollout, scores = gather_rollout(rollout, scores, eos, run.accelerator)  # from here on, all rows
            kl_coef = run.controller.kl_coef
            rewards = kl_shaped_rewards(scores, rollout.old_logprobs, rollout.ref_logprobs, rollout.mask, kl_coef)
            advantages, returns = gae(rewards, rollout.values, rollout.mask, config.gamma, config.lam)
            stats = ppo_update(run.shared, run.optimizer, rollout, advantages, returns, cfg)

            row = dict(iteration=iteration, **batch_means(rollout, scores), kl_coef=kl_coef, **stats)
            check_finite(row)
            run.controller.update(row["kl"], config.batch)
            bar.set_postfix(score=f"{row['score']:.2f}", kl=f"{row['kl']:.2f}")
            if records:
                write_down(run, records, row, prompts, rollout, scores)
    if run.accelerator.is_main_process:
        save_final(run)
    run.accelerator.wait_for_everyone()
    return policy


def prepare(config: TrainConfig, found: Checkpoint | None = None) -> Run:
    """Load and check all that a run needs, and put it where `found` was saved, if given.

    Raises ValueError for a mistake in the settings, and where `config.out` has checkpoints and none is to be continued.
    """
    if found is None and checkpoint.steps(checkpoints(config)):
        raise ValueError(f"{config.out} has checkpoints: go on from them with --resume, or choose another --out")
    # the policy sees to its precision; its buffers never change, and one loss may come from two passes
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[ddp])
    check_shares(config.batch, accelerator)
    set_seed(config.seed)  # alike in all processes: the minibatches are drawn with it, adapters start from it
    reward = load_reward(config.reward, accelerator.device)
    policy = GPT2Policy.from_pretrained(
        config.model, accelerator.device, torch.bfloat16 if config.dtype == "bfloat16" else None
    )
    ref_policy = add_adapters(policy, config.lora_rank) if config.lora_rank else policy.frozen_copy()
    prompts = read_prompts(config, policy)
    rate = config.learning_rate or (2e-4 if config.model == "tiny" or config.lora_rank else 1e-5)
    groups = [
        dict(params=list(checkpoint.trainable(policy.lm).values()), lr=rate),
        dict(params=policy.value_head.parameters(), lr=config.head_learning_rate),
    ]
    optimizer = torch.optim.AdamW([dict(group, initial_lr=group["lr"]) for group in groups], fused=True)
    if config.kl_target is None:
        controller = SimpleNamespace(kl_coef=config.kl_coef, update=lambda kl, num_samples: None)
    else:
        controller = AdaptiveKL(config.kl_coef, config.kl_target, config.horizon)
    shared = share(policy, accelerator)
    run = Run(config, accelerator, policy, shared, ref_policy, reward, prompts, optimizer, controller)
    return restore(run, found) if found else run


def load_reward(name: str, device) -> Reward:
    """The reward that `--reward` names; its scores are checked each time: [B], finite."""
    kind, _, rest = name.partition(":")
    if name == "sentiment":
        reward = sentiment_reward()
    elif name == "ratings":
        from rlcourse.reward_model import RewardModel

        reward = RewardModel.from_pretrained("ratings", device)
    elif kind == "keyword":
        reward = keyword_reward([word.strip() for word in rest.split(",") if word.strip()])
    else:
        try:
            reward = getattr(importlib.import_module(kind), rest)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"reward {name!r} cannot be imported: {error}") from error
    return combine({name: (1.0, reward)})


def read_prompts(config: TrainConfig, policy: GPT2Policy) -> list[str]:
    """The course's training prompts, or the lines of a file that are not empty; all must leave room for a response."""
    if not config.prompts:
        prompts = load_prompts("train")
    else:
        try:
            prompts = [line for line in Path(config.prompts).read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"prompts must be a text file in UTF-8, got {config.prompts!r}: {error}") from error
        if not prompts:
            raise ValueError(f"prompts has no line that is not empty: {config.prompts!r}")
    lengths = policy.encode(prompts).mask.sum(1)
    longest = int(lengths.argmax())
    if lengths[longest] + config.new_tokens > policy.context:
        raise ValueError(
            f"new_tokens {config.new_tokens} and the {lengths[longest]} tokens of the longest prompt, "
            f"{prompts[longest][:60]!r}, exceed the model's context of {policy.context}"
        )
    return prompts


def set_rates(optimizer: torch.optim.Optimizer, iteration: int, config: TrainConfig) -> None:
    """Learning rates fall in a straight line from the first iteration on, towards `final_rate` of them after the last.

    They are a function of the iteration, so a checkpoint need not hold them, and more iterations stretch the line.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (1 - (1 - config.final_rate) * (iteration - 1) / config.iterations)


def batch_means(rollout: Rollout, scores: torch.Tensor) -> dict[str, float]:
    """Means over responses: score, kl (to the reference, nats a response), response_length (actions)."""
    kl = torch.where(rollout.mask > 0, rollout.old_logprobs - rollout.ref_logprobs, 0).sum(1)
    columns = dict(score=scores, kl=kl, response_length=rollout.mask.sum(1))
    return {name: column.mean().item() for name, column in columns.items()}


def check_finite(row: dict[str, float]) -> None:
    """Raise FloatingPointError before such numbers reach a checkpoint (only the explained variance may be none)."""
    if bad := [name for name, x in row.items() if not math.isfinite(x) and name != "explained_variance"]:
        raise FloatingPointError(
            f"in iteration {row['iteration']} {bad[0]} is {row[bad[0]]}: this run has gone astray. Its last checkpoint "
            "is good; a smaller learning rate or a higher price of KL may help a new run"
        )


def open_records(run: Run) -> AbstractContextManager[Records | None]:
    """In the main process, the files that a run writes, cut back to the iteration from which it goes on."""
    run.accelerator.wait_for_everyone()  # no other process still reads a checkpoint
    if not run.accelerator.is_main_process:
        return nullcontext()
    with checkpoint.writing(run.config.out, checkpoints(run.config)):
        checkpoint.tidy(checkpoints(run.config), run.done)
        return Records(run.config.out, run.done)


def progress(run: Run) -> tqdm:
    """The iterations that are left, with a bar in the main process; RLCOURSE_PROGRESS=0 turns it off."""
    quiet = not run.accelerator.is_main_process or os.environ.get("RLCOURSE_PROGRESS") == "0"
    last = run.config.iterations
    return tqdm(range(run.done + 1, last + 1), initial=run.done, total=last, disable=quiet)


def write_down(run: Run, records: Records, row: dict, prompts: list[str], rollout: Rollout, scores) -> None:
    """After an iteration: a row of the history, and where they are due sample texts and a checkpoint."""
    config, iteration = run.config, row["iteration"]
    due = iteration % config.save_every == 0 or iteration == config.iterations
    with checkpoint.writing(f"history and samples in {config.out}", checkpoints(config)):
        records.add(row)
        if iteration % config.sample_every == 0:
            few = slice(0, min(8, len(rollout)))
            records.add_samples(iteration, prompts[few], response_texts(run.policy, rollout[few]), scores[few].tolist())
        if due:
            records.sync()  # a checkpoint never knows of more iterations than the history does
    if due:
        save(run, iteration)


def save(run: Run, iteration: int) -> Path:
    """Write a checkpoint from which `restore` goes on as if nothing had happened."""
    tensors = dict(model=checkpoint.trainable(run.policy), optimizer=checkpoint.optimizer_tensors(run.optimizer))
    state = dict(config=asdict(run.config), kl_coef=run.controller.kl_coef, random=checkpoint.random_states())
    return checkpoint.save(checkpoints(run.config), iteration, tensors, state, run.config.keep)


def restore(run: Run, found: Checkpoint) -> Run:
    """The run as it was when `found` was saved, on any number of processes."""
    checkpoint.load_parameters(run.policy, found.tensors["model"])
    checkpoint.load_optimizer_tensors(run.optimizer, found.tensors["optimizer"])
    checkpoint.set_random_states(found.state["random"])
    run.controller.kl_coef = found.state["kl_coef"]
    steps = run.accelerator.gather(torch.tensor([found.step], device=run.accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes found different checkpoints, of iterations {steps}: do all see {run.config.out}?"
        )
    return replace(run, done=found.step)


def save_final(run: Run) -> None:
    """Write `out/final` for `GPT2Policy.from_pretrained`; adapters are merged into the weights."""
    merge_adapters(run.policy)
    folder = Path(run.config.out) / "final"
    with checkpoint.writing(folder, checkpoints(run.config)), checkpoint.new_folder(folder) as beside:
        run.policy.save_pretrained(beside)


def checkpoints(config: TrainConfig) -> Path:
    """The folder of a run's checkpoints."""
    return Path(config.out) / "checkpoints"


def main(given: dict, resume: bool) -> int:
    """Run with the settings `given`; returns the exit status. A mistake or a full disk is one line, no traceback."""
    try:
        out = given.get("out", TrainConfig.out)
        found = checkpoint.load_latest(Path(out) / "checkpoints") if resume else None
        run = prepare(resumed(found.state["config"], given) if found else TrainConfig(**given), found)
    except (CheckpointError, ValueError) as error:
        return _fail(error)
    say, processes = run.accelerator.print, run.accelerator.num_processes
    say(f"{processes} process{'es' * (processes > 1)} on {run.accelerator.device.type}")
    if resume:
        say(
            f"going on after iteration {run.done}"
            if found
            else f"no checkpoint in {out} yet: starting from the beginning"
        )
    try:
        train(run)
    except (CheckpointError, FloatingPointError) as error:
        return _fail(error)
    say(f"{run.config.iterations} iterations are done; the model is in {Path(out) / 'final'}")
    return 0


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(GIVEN, RESUME))
