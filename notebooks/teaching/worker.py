"""Runs the cells of one submission and answers calls of its functions; started by grade_apart.py, not by hand.

A message is its length and what torch.save makes of it. The reader unpickles with weights_only: nothing but numbers,
strings, lists, tuples, dicts and tensors gets through, whatever a submission may try to send.
"""

import io
import os
import re
import struct
import sys

import torch

LARGEST = 2**28  # bytes of a message


class ClosedBook:
    """Stands first in sys.meta_path and refuses the package whose functions are asked for."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "rlcourse":
            raise ImportError("this assignment is solved without rlcourse: write the function yourself, with torch")


def send(stream, message) -> None:
    """Write one message."""
    buffer = io.BytesIO()
    torch.save(message, buffer)
    stream.write(struct.pack(">Q", buffer.tell()) + buffer.getvalue())
    stream.flush()


def receive(stream):
    """Read one message; EOFError at the end."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    (length,) = struct.unpack(">Q", head)
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes")
    return torch.load(io.BytesIO(stream.read(length)), weights_only=True)


def plain(x):
    """x as plain data without gradients; TypeError where that cannot be."""
    if isinstance(x, torch.Tensor):
        return x.detach().cpu().as_subclass(torch.Tensor).clone()
    if x is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(x, kind):
            return kind(x)
    for kind in (list, tuple):
        if isinstance(x, kind):
            return kind(plain(item) for item in x)
    if isinstance(x, dict):
        return {plain(key): plain(item) for key, item in x.items()}
    raise TypeError(f"expected a tensor or plain Python data, got {type(x).__name__}")


class Worker:
    """What a submission is asked: `run`, `names`, `call` and `pull_back`."""

    def __init__(self):
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False
        self.shell, self.calls = InteractiveShell.instance(config=config), []

    def run(self, source: str) -> None:
        """One cell, as a kernel would run it: magics work, and an error ends this cell only."""
        self.shell.run_cell(source)

    def names(self) -> dict:
        """Everything called my_...: its value, or None for a function."""
        found = {}
        for name, x in self.shell.user_ns.items():
            if re.fullmatch(r"my_\w+", name):
                try:
                    found[name] = None if callable(x) else {"value": plain(x)}
                except TypeError:
                    pass
        return found

    def call(self, name: str, args: list, kwargs: dict, live: list[int]) -> dict:
        """The value of a function; `live` are the arguments that take a gradient."""
        for i in live:
            args[i].requires_grad_()
        value = self.shell.user_ns[name](*args, **kwargs)
        gradient = isinstance(value, torch.Tensor) and value.requires_grad
        if gradient:
            self.calls.append((value, [args[i] for i in live]))
        return dict(value=plain(value), gradient=gradient, number=len(self.calls) - 1)

    def pull_back(self, number: int, gradient: torch.Tensor) -> list:
        """The gradients on the live arguments of an earlier call, given that on its value."""
        value, live = self.calls[number]
        return plain(list(torch.autograd.grad(value, live, gradient, retain_graph=True, allow_unused=True)))


def main() -> None:
    """Answer messages until there are none; what the submission prints goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    questions = os.fdopen(os.dup(0), "rb")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    if "closed" in sys.argv:
        sys.meta_path.insert(0, ClosedBook())
    worker = Worker()
    send(answers, ("ok", None))
    while True:
        try:
            what, *rest = receive(questions)
            answer = "ok", getattr(worker, what)(*rest)
        except EOFError:
            return
        except BaseException as error:  # KeyboardInterrupt too: the time was up
            answer = "error", type(error).__name__, str(error)
        send(answers, answer)


if __name__ == "__main__":
    main()
