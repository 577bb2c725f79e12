"""The learner's function, as a check calls it."""

import re
from collections.abc import Callable

from torch import Tensor

from rlcourse.checks.limit import TimeUp


class Wrong(Exception):
    """The answer is wrong; the message says why."""


class Raised(Exception):
    """The learner's function raised an error: the error, what the arguments were, the learner's own traceback."""


def fail(message: str) -> None:
    """Tell the learner what is wrong."""
    raise Wrong(message)


class Asked:
    """The learner's function with the names of its arguments, which it gets as copies and must leave as they are."""

    def __init__(self, fn: Callable, names: list[str]):
        self.fn, self.names = fn, names

    def __call__(self, *args):
        """The answer; Raised if there is none."""
        if not callable(self.fn):
            fail("give the check your function itself, not what it returns")
        own = [_copy(x) for x in args]
        try:
            answer = self.fn(*own)
        except (Wrong, TimeUp):
            raise
        except BaseException as error:
            told = ", ".join(f"{name}: {_in_short(x)}" for name, x in zip(self.names, args))
            raise Raised(error, told, error.__traceback__.tb_next) from None
        if answer is None:
            fail("nothing is returned: the last line needs a return")
        for name, before, after in zip(self.names, args, own):
            if not _same(before, after):
                fail(
                    f"your function changes its argument `{name}` in place, and whoever calls it goes on with the "
                    "changed numbers: work on a copy (`.clone()`), or make a new tensor"
                )
        return answer

    def told(self, args: tuple) -> str:
        """The arguments, each with its name."""
        shown = [(name, x.detach() if isinstance(x, Tensor) else x) for name, x in zip(self.names, args)]
        return "\n".join(f"{name} ={chr(10) if isinstance(x, Tensor) and x.dim() > 1 else ' '}{x}" for name, x in shown)


def argument_names(docstring: str | None) -> list[str]:
    """The names in the docstring's "fn(logprobs, mask [B, T], gamma) -> ..."."""
    inside = re.search(r"fn\((.*?)\)", docstring or "")
    return [part.split()[0] for part in re.sub(r"\[.*?\]", "", inside[1]).split(",")] if inside else []


def _copy(x: object) -> object:
    return x.clone() if isinstance(x, Tensor) else list(x) if isinstance(x, list) else x


def _same(before: object, after: object) -> bool:
    if isinstance(before, list):
        return len(before) == len(after) and all(x is y for x, y in zip(before, after))
    if not isinstance(before, Tensor):
        return True  # a number or a text cannot be changed in place
    return before.shape == after.shape and bool(((before == after) | (before.isnan() & after.isnan())).all())


def _in_short(x: object) -> str:
    if isinstance(x, Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return repr(x) if isinstance(x, int | float | str) else f"{type(x).__name__} of {len(x)}"
