"""The settings of a long run, and the flags that mirror them; nothing slow is imported: a typo fails at once."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_args

REWARDS = "sentiment, ratings, keyword:joy,wonder or package.module:function"
NAMES = {int: "a whole number", float: "a finite number", str: "a text", type(None): "None"}


def setting(default, help: str, above=None, at_least=None, at_most=None, one_of: Sequence[str] = ()) -> Any:
    """A field of `TrainConfig`: its default, the help of its flag, and between what its value must lie."""
    limits = {"above": above, "at least": at_least, "at most": at_most}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return field(default=default, metadata=dict(help=help, limits=limits, one_of=one_of))


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run, each with the flag of the same name; the defaults are the run of notebook 07.

    Raises ValueError, naming the setting, what was expected and what came.
    """

    model: str = setting("tiny", 'the bundled model "tiny", a Hugging Face id such as gpt2, or a folder')
    out: str = setting("runs/ppo", "folder for checkpoints, history, samples and the final model")
    reward: str = setting("sentiment", REWARDS + "; the function gets prompts and responses and returns scores [B]")
    prompts: str = setting("", "text file with one prompt a line; without it, the course's openings of film reviews")
    iterations: int = setting(45, "how often to sample and update", at_least=1)
    batch: int = setting(64, "responses an iteration, over all processes together", at_least=1)
    new_tokens: int = setting(24, "longest response, in tokens", at_least=1)
    temperature: float = setting(1.0, "sampling temperature, used when scoring too", above=0)
    learning_rate: float | None = setting(
        None, "AdamW's rate at the start; without it 2e-4 for tiny and for adapters, else 1e-5", above=0
    )
    head_learning_rate: float = setting(1e-3, "rate of the value head at the start", above=0)
    final_rate: float = setting(
        0.02, "share of both rates that is left at the end of a straight line", at_least=0, at_most=1
    )
    epochs: int = setting(2, "passes over the responses of an iteration", at_least=1)
    minibatches: int = setting(4, "gradient steps a pass", at_least=1)
    clip_eps: float = setting(0.2, "how far the ratio may move and still be paid for", above=0)
    vf_coef: float = setting(0.5, "weight of the value loss", at_least=0)
    ent_coef: float = setting(0.0, "weight of the entropy bonus", at_least=0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm", above=0)
    gamma: float = setting(1.0, "discount an action", at_least=0, at_most=1)
    lam: float = setting(1.0, "lambda of GAE", at_least=0, at_most=1)
    kl_coef: float = setting(0.045, "price of a nat of KL to the reference (at the start, with kl-target)", at_least=0)
    kl_target: float | None = setting(None, "nats a response that an adaptive price aims at", above=0)
    horizon: float = setting(10000.0, "samples in which the adaptive price can change by a fifth", above=0)
    lora_rank: int = setting(0, "rank of LoRA adapters on every linear layer; 0 trains all weights", at_least=0)
    dtype: str = setting("float32", "of forward passes on a GPU; weights are float32", one_of=("float32", "bfloat16"))
    seed: int = setting(0, "of all randomness", at_least=0, at_most=2**32 - 1)
    save_every: int = setting(5, "iterations between two checkpoints", at_least=1)
    sample_every: int = setting(5, "iterations between two lots of sample texts", at_least=1)
    keep: int = setting(2, "newest checkpoints to keep", at_least=1)

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if self.minibatches > self.batch:
            raise ValueError(f"minibatches must be at most batch {self.batch}, got {self.minibatches}")
        if not re.fullmatch(r"sentiment|ratings|keyword:.*\S.*|[\w.]+:\w+", self.reward):
            raise ValueError(f"reward must be {REWARDS}, got {self.reward!r}")
        if self.kl_target is not None and not self.kl_coef > 0:
            raise ValueError(f"kl_coef must be above 0 where kl_target is given, got {self.kl_coef}")
        if self.kl_target is not None and self.horizon < self.batch:
            raise ValueError(f"horizon must be at least batch {self.batch}, got {self.horizon}")


FREE = ("iterations", "save_every", "sample_every", "keep")  # what may be changed in the middle of a run


def parse(argv: list[str] | None = None) -> tuple[dict, bool]:
    """Command line -> ({setting: value} of those given, whether to resume). A mistake ends the program (status 2)."""
    parser = argparse.ArgumentParser(
        "python -m rlcourse.train", description="PPO on a language model; see notebooks/07_ppo_on_gpt2.ipynb.",
        argument_default=argparse.SUPPRESS, allow_abbrev=False,
    )  # fmt: skip
    for f in fields(TrainConfig):
        default = "" if f.default in (None, "") else f" (default: {f.default})"
        kind = next(kind for kind in _kinds(f) if kind is not type(None))
        parser.add_argument(flag(f.name), type=kind, help=f.metadata["help"] + default, metavar=kind.__name__)
    parser.add_argument(
        "--resume", action="store_true", default=False,
        help="go on from the newest good checkpoint in --out, with its settings; of the flags only "
        + ", ".join(map(flag, FREE)) + " may say otherwise",
    )  # fmt: skip
    given = vars(parser.parse_args(argv))
    resume = given.pop("resume")
    try:
        TrainConfig(**given)
    except ValueError as error:
        parser.error(str(error))
    return given, resume


def resumed(stored: dict, given: dict) -> TrainConfig:
    """The settings of a run that goes on: the stored ones, but for `FREE` ones and the folder, which may have moved.

    Raises ValueError when another one of `given` differs from what is stored.
    """
    for name, value in given.items():
        if name not in (*FREE, "out") and value != stored[name]:
            raise ValueError(
                f"{flag(name)} is {value!r}, but the run in {given.get('out', TrainConfig.out)} has {stored[name]!r}; "
                f"leave the flag out, or start in another --out. What can change: {', '.join(map(flag, FREE))}"
            )
    return TrainConfig(**stored | given)


def flag(name: str) -> str:
    """The flag of a setting: learning_rate -> --learning-rate."""
    return "--" + name.replace("_", "-")


def _kinds(f) -> tuple[type, ...]:
    return get_args(f.type) or (f.type,)


def _checked(f, value):
    kinds = _kinds(f)
    if float in kinds and type(value) is int:
        value = float(value)
    right = type(value) in kinds and (type(value) is not float or math.isfinite(value))
    expected = " or ".join(NAMES[kind] for kind in kinds)
    if one_of := f.metadata["one_of"]:
        right, expected = value in one_of, " or ".join(one_of)
    if limits := f.metadata["limits"]:
        expected += " " + " and ".join(f"{name} {limit}" for name, limit in limits.items())
    tests = {"above": lambda x, y: x > y, "at least": lambda x, y: x >= y, "at most": lambda x, y: x <= y}
    if not right or (value is not None and not all(tests[name](value, limit) for name, limit in limits.items())):
        raise ValueError(f"{f.name} must be {expected}, got {value!r}")
    return value
