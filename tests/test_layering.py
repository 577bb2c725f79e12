"""Which module may import which. A new module is added here on purpose, and so is a new arrow."""

import ast
from pathlib import Path

import pytest

import rlcourse

ALLOWED = {
    "__init__": set(),
    "masking": set(),
    "returns": {"masking"},
    "losses": {"masking"},
    "rollout": set(),
    "baselines": {"masking"},
    "reinforce": {"losses", "masking", "rollout"},
    "envs": {"baselines", "masking", "rollout"},
    "control": {"rollout"},
    "rnn": set(),
    "ppo": {"losses", "masking", "rollout"},
    "action_logprobs": set(),
    "gpt2": {"action_logprobs", "rollout"},
    "words": set(),
    "rewards": {"words"},
    "data": set(),
    "pretrain": {"gpt2", "data"},
    "supervised": {"masking", "losses"},
    "tasks": {"data", "gpt2", "pretrain"},
    "plotting": set(),
    "preferences": {"data"},
    "reward_model": {"gpt2", "losses", "plotting", "preferences"},
    "bag_of_words": set(),
    "preference_losses": {"losses"},
    "grpo": {"losses", "ppo", "rollout"},
    "best_of_n": {"gpt2"},
    "classification": {"baselines", "losses"},
    "evaluation": set(),
    "text_env": set(),
    "q_learning": {"envs", "masking"},
    "diagnostics": {"gpt2", "losses", "masking", "rollout"},
    "museum": {"data", "diagnostics", "gpt2", "masking", "plotting", "ppo", "returns", "rewards", "rollout"},
    "checkpoint": set(),
    "settings": set(),
    "records": set(),
    "parallel": {"rollout"},
    "adapters": {"gpt2"},
}
ALLOWED["train"] = set(ALLOWED) - {"__init__"}
ALLOWED["checks"] = set(ALLOWED) - {"__init__"}

PACKAGE = Path(rlcourse.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(source):
    """The modules of rlcourse that a source imports, at the top or inside a function; "rlcourse" for the bare package.

    Names with two underscores in front, such as `__version__`, are no modules.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(["rlcourse"] * (node.level > 0) + [node.module] * (node.module is not None))
            names |= {f"{package}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    modules = {(part + part)[1] for part in parts if part[0] == "rlcourse"}  # of one part, that part
    return {module for module in modules if not module.startswith("__")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_the_design_allows(file):
    module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")  # a folder is one module
    assert module in ALLOWED, f"{module} is new: list it in {__name__} with what it may import"
    new = imported_modules(file.read_text(encoding="utf-8")) - ALLOWED[module] - ({module} - {file.stem})
    assert not new, f"{file.name} imports {sorted(new)}; allowed: {sorted(ALLOWED[module])}"


def test_no_import_goes_in_a_circle():
    done = set()
    while ready := {name for name in ALLOWED if ALLOWED[name] <= done} - done:
        done |= ready
    assert done == set(ALLOWED)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from rlcourse.losses import entropy", {"losses"}),
        ("from rlcourse import losses, masking as m", {"losses", "masking"}),
        ("import torch, rlcourse.gpt2 as g", {"gpt2"}),
        ("import rlcourse", {"rlcourse"}),
        ("from . import data", {"data"}),
        ("from .ppo import ppo_update", {"ppo"}),
        ("def f():\n    if True:\n        from rlcourse.ppo import ppo_update", {"ppo"}),
        ("class A:\n    def f(self):\n        import rlcourse.data", {"data"}),
        ("from rlcourse import __version__", set()),
        ("import torch, rlcourse_other.x\nfrom math import log", set()),
        ("# import rlcourse.ppo\n'from rlcourse import ppo'", set()),
    ],
)
def test_every_form_of_import_is_seen(source, expected):
    assert imported_modules(source) == expected
