"""How a check judges: the learner's answer against the right one, then against what each known mistake would give."""

import os
from collections.abc import Callable

import torch
from torch import Tensor


def verdict(name: str, fn: Callable, args: tuple, right: Tensor, mistakes: dict[str, Tensor]) -> None:
    """Compare fn's answer with the right one, then with what each known mistake would give."""
    answer = attempt(name, fn, tuple(x.clone() if isinstance(x, Tensor) else x for x in args))  # its own copies
    if answer is None:
        return
    if not isinstance(answer, Tensor):
        fail(name, f"expected a tensor, got {type(answer).__name__}")
    if answer.shape != right.shape:
        fail(name, f"the shape must be {tuple(right.shape)}, got {tuple(answer.shape)}")
    if any(isinstance(x, Tensor) and x.requires_grad for x in args) and not answer.requires_grad:
        fail(name, "no gradient reaches the log-probabilities: something was detached on the way")
    if _alike(answer, right):
        print(f"{name}: right")
        return
    for mistake, wrong in mistakes.items():
        if _alike(answer, wrong):
            fail(name, mistake)
    fail(name, f"expected\n{right}\ngot\n{answer}\nfor the arguments {args}")


def attempt(name: str, fn: Callable, args: tuple):
    """fn's answer, or None after saying that there is none yet."""
    try:
        answer = fn(*args)
    except NotImplementedError:
        if os.environ.get("RLCOURSE_STRICT") == "1":
            raise
        print(f"{name}: not attempted yet")
        return None
    if answer is None:
        fail(name, "nothing is returned: the last line needs a return")
    return answer


def fail(name: str, message: str) -> None:
    """Raise the AssertionError that tells the learner what is wrong."""
    raise AssertionError(f"{name}: {message}")


def _alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.detach().double(), b.double(), atol=1e-4, rtol=1e-4, equal_nan=True)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that leave torch's global generator alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
