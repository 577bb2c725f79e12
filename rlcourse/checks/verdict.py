"""How a check judges: on several random inputs, the learner's answer against the right one and the known mistakes.

A check is written as

    @exercise("07.2")
    def check_gae(fn: Callable, draw: Draw) -> None:
        \"\"\"Exercise 07.2: fn(rewards, values, mask [B, T], gamma, lam) -> advantages [B, T].\"\"\"
        mask, lengths = draw.prefixes(5, 3)
        rewards, gamma = draw.randn(*mask.shape), draw.number(0.7, 0.95)
        ...
        verdict(fn, (rewards, values, mask, gamma, lam), right, {"the sign is flipped": -right})

and called as `check_gae(my_gae)`. The decorator runs it once for each of CASES, each time with another `draw`, stops at
the first wrong answer, prints `exercise 07.2: right` once, and keeps what `progress` shows. All numbers come from
`draw`, so they are the same in every kernel and leave torch's global generator alone; the last case is in float64.

- `verdict` throws a draw away (`Redraw`) in which the right answer and the mistakes are not all clearly different. A
  check may do so too: `redraw_unless(condition)`.
- An answer is judged by its numbers: float64, float16 or bfloat16 is as good as float32, with a tolerance of its own,
  and so are integers or booleans where the right answer has no fractions. `kind` asks for one kind of numbers.
- Where an argument requires a gradient, the gradient is compared too, with how the learner's right number changes when
  that argument moves a little. (Rounded to 16 bits the number hardly changes; there the gradient is taken on trust.)
- `demand` adds a case that only one mistake gets wrong: very long, very large, without the last token.
- A check that has no right tensor to compare with calls `fn(*args)` for the answer and `fail(message)` itself. What a
  check returns (a remark, or None) is printed after `right`.
- Arguments are named as in the docstring's "fn(...)". The learner's function must not change them in place.
- The learner's own exception comes through. One that only complains about float64 in the last case is forgiven:
  nobody asked for more than float32.
"""

import os
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlcourse.checks.asked import Asked, Raised, Wrong, argument_names, fail
from rlcourse.checks.limit import TimeUp, within

CASES = (0, torch.float32), (1, torch.float32), (2, torch.float64)  # seed and dtype of the inputs
SECONDS = 10.0  # for a whole check; the right answers take a hundredth of a second
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}  # relative to the largest number of an answer
APART = 5e-3  # how different, on the same scale, two mistakes must be
STEP = 2e-3  # how far an argument is moved to compare a gradient
KINDS = {
    "float": (Tensor.is_floating_point, "floating-point numbers"),
    "integer": (lambda x: not x.is_floating_point() and x.dtype != torch.bool, "whole numbers"),
}
EXERCISES: dict[str, str] = {}  # number -> name
_state: dict[str, str] = {}  # number -> what progress() says, once it was checked


class Redraw(Exception):
    """These inputs do not tell all the mistakes apart."""


class Draw:
    """Random inputs of one case, in one dtype: the same in every kernel, others for each exercise and seed."""

    def __init__(self, number: str, seed: int, dtype: torch.dtype, attempt: int = 0):
        self.dtype, self.more = dtype, seed % 2  # every other case has one row more
        self.generator = torch.Generator().manual_seed(int(number.replace(".", "")) + 10_000 * (seed + 1000 * attempt))

    def randn(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def rand(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers spread evenly from low to high."""
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * uniform).to(self.dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers from 0 to high - 1."""
        return torch.randint(high, shape, generator=self.generator)

    def number(self, low: float, high: float) -> float:
        """One Python float with two decimals, for a gamma or a clip_eps."""
        return round(self.rand(low=low, high=high).item(), 2)

    def shuffled(self, items: Sequence) -> list:
        """The items in another order."""
        return [items[i] for i in torch.randperm(len(items), generator=self.generator)]

    def tensor(self, numbers: Sequence) -> Tensor:
        """A tensor of this case's dtype."""
        return torch.tensor(numbers, dtype=self.dtype)

    def size(self, rows: int) -> int:
        """How many rows: as many, or one more in every other case, so that no size can be written into an answer."""
        return rows + self.more

    def prefixes(self, *lengths: int, width: int | None = None) -> tuple[Tensor, list[int]]:
        """A mask [B, T] whose rows begin with that many ones (shuffled, and one row more as in `size`), the lengths."""
        width = width or max(lengths)
        lengths = self.shuffled([*lengths, *(1 + self.integers(max(lengths), self.more)).tolist()])
        return self.tensor([[1.0] * n + [0.0] * (width - n) for n in lengths]), lengths


def exercise(number: str, patience: int = 1) -> Callable:
    """Turn body(fn, draw) into check(fn), the check of this exercise, given `patience` times SECONDS."""

    def decorate(body: Callable) -> Callable:
        def check(fn: Callable) -> None:
            name, _state[number] = f"exercise {number}", "wrong so far"
            asked = Asked(fn, argument_names(body.__doc__))
            limit = SECONDS * patience
            try:
                remark = within(limit, lambda: _all_cases(number, body, asked))
            except Wrong as wrong:
                raise AssertionError(f"{name}: {wrong}") from None
            except TimeUp:
                raise AssertionError(f"{name}: no answer after {limit:g} seconds: an endless loop?") from None
            except Raised as raised:
                error = raised.args[0]
                if _is_stub(error):
                    _state[number] = "not attempted yet"
                    if os.environ.get("RLCOURSE_STRICT") != "1":
                        print(f"{name}: not attempted yet")
                        return
                else:
                    error.add_note(f"{name}: your function raised this for the arguments {raised.args[1]}")
                raise error.with_traceback(raised.args[2]) from error.__cause__  # the learner's own lines only
            _state[number] = "right"
            print(f"{name}: right" + (f"\n{remark}" if remark else ""))

        EXERCISES[number] = body.__name__.removeprefix("check_")
        check.__name__, check.__qualname__ = body.__name__, body.__qualname__
        check.__doc__, check.__module__ = body.__doc__, body.__module__
        return check

    return decorate


def _all_cases(number: str, body: Callable, fn: Asked) -> str | None:
    remark = None
    for case, (seed, dtype) in enumerate(CASES):
        try:
            remark = _drawn(number, body, fn, seed, dtype)
        except Wrong as wrong:
            if not case:
                raise
            hint = "right for the first inputs, wrong for others: is a size or a number written into your function?"
            raise Wrong(f"{wrong}\n({hint})") from None
        except Raised as raised:
            if not case or dtype != torch.float64 or not re.search("dtype|scalar type|Double", str(raised.args[0])):
                raise
    return remark


def _drawn(number: str, body: Callable, fn: Asked, seed: int, dtype: torch.dtype) -> str | None:
    """The body on the first draw in which all mistakes differ."""
    for attempt in range(200):
        try:
            return body(fn, Draw(number, seed, dtype, attempt))
        except Redraw:
            continue
    raise RuntimeError(f"exercise {number}: no inputs found on which all mistakes differ")


def redraw_unless(condition: bool) -> None:
    """Throw these inputs away if something about them is too close to call."""
    if not condition:
        raise Redraw


def verdict(
    fn: Asked, args: tuple, right: Tensor, mistakes: dict[str, Tensor], view: Callable | None = None,
    tell: Callable[[Tensor, Tensor], str] | None = None, kind: str | None = None,
) -> None:  # fmt: skip
    """Compare fn's answer with the right one and with what each known mistake would give; the nearest one counts.

    view(*args) is what is compared where it is not fn's answer itself; tell(right, answer) is how a difference without
    a name is told; kind asks for "float" or "integer".
    """
    named = [right.detach().double(), *(wrong.detach().double() for wrong in mistakes.values())]
    known = torch.stack([x.flatten() for x in named])
    distances = _distances(known, known)
    redraw_unless((distances + torch.eye(len(known)) > APART).all())
    differentiable = any(isinstance(x, Tensor) and x.requires_grad for x in args)
    answer = _tensor((view or fn)(*args), right.shape, differentiable)
    distances = _distances(answer.detach().cpu().double().reshape(1, -1), known)[0]
    nearest = int(distances.argmin())
    if distances[nearest] <= TOLERANCE.get(answer.dtype, 1e-4):
        if nearest:
            fail(list(mistakes)[nearest - 1])
        if kind and not KINDS[kind][0](answer):
            fail(f"the numbers are right, but they must be {KINDS[kind][1]}, got {answer.dtype}")
        return _compare_gradients(fn, args, answer)
    if not answer.is_floating_point() and (right != right.round()).any():
        fail(f"expected floating-point numbers, got {answer.dtype}: what stands after the point is lost")
    told = tell(right, answer.detach()) if tell else f"expected\n{right}\ngot\n{answer.detach()}"
    fail(f"{told}\nfor the arguments\n{fn.told(args)}")


def demand(fn: Asked, args: tuple, right: Tensor, message: str) -> None:
    """One more case, after `verdict`: only the mistake that the message names gives another number here, an error, or
    a gradient that is no number."""
    try:
        answer = _tensor(fn(*args), right.shape, differentiable=False)
    except Raised as raised:
        fail(f"{message}\n(your function raised {raised.args[0]!r})")
    distance = _distances(answer.detach().cpu().double().reshape(1, -1), right.double().reshape(1, -1))
    if distance > max(1e-2, TOLERANCE.get(answer.dtype, 0.0)):
        fail(f"{message}\n(expected {right}, got {answer.detach()})")
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    for gradient in torch.autograd.grad(answer.sum(), leaves, allow_unused=True) if leaves else ():
        if gradient is not None and not gradient.isfinite().all():
            fail(f"{message}\n(the number is right, but its gradient is\n{gradient})")


def _compare_gradients(fn: Asked, args: tuple, answer: Tensor) -> None:
    """autograd's gradient of a right answer against how the answer changes on a small step to either side.

    At a kink, as where a clip begins, any slope between those of the two sides will do.
    """
    weights = torch.linspace(0.5, 1.5, answer.numel(), dtype=torch.float64).reshape(answer.shape)

    def value(x: Tensor) -> Tensor:
        return (weights * x.cpu().double()).sum()

    for i, leaf in enumerate(args):
        if answer.dtype in TOLERANCE or not isinstance(leaf, Tensor) or not leaf.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(value(answer), leaf, retain_graph=True, allow_unused=True)
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        way = torch.arange(1, leaf.numel() + 1, dtype=leaf.dtype).cos().reshape(leaf.shape)
        moved = [fn(*args[:i], leaf.detach() + step * way, *args[i + 1 :]) for step in (-STEP, STEP)]
        back, here, ahead = (value(x.detach()) for x in (moved[0], answer, moved[1]))
        along = (gradient * way).double()
        slopes = sorted([(here - back) / STEP, (ahead - here) / STEP])
        close = 0.02 * max(along.abs().sum(), *(slope.abs() for slope in slopes)) + 1e-3
        if not slopes[0] - close <= along.sum() <= slopes[1] + close:
            fail(
                f"the number is right, but its gradient on `{fn.names[i]}` is not: on part of the way from there to "
                "your answer something was detached"
            )


def gradients(fn: Asked, args: tuple, of: tuple[int, ...]) -> list[Tensor]:
    """The scalar loss that fn gives and its gradients on the arguments of these numbers, in the loss's dtype."""
    leaves = {i: args[i].clone().requires_grad_() for i in of}
    loss = _tensor(fn(*(leaves.get(i, x) for i, x in enumerate(args))), (), differentiable=True)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves.values(), found)]
    return [loss.detach(), *(g.to(loss.dtype) for g in found)]


def _tensor(answer, shape: tuple, differentiable: bool) -> Tensor:
    """The answer, if it is what it should be on the outside."""
    if not isinstance(answer, Tensor):
        fail(f"expected a tensor, got {type(answer).__name__}")
    if answer.is_complex():
        fail(f"expected real numbers, got {answer.dtype}")
    if answer.shape != shape:
        fail(f"the shape must be {tuple(shape)}, got {tuple(answer.shape)}")
    if differentiable and not answer.requires_grad:
        fail("no gradient reaches the arguments: something was detached on the way")
    return answer


def progress(notebook: str | None = None) -> None:
    """Print how far you are: in the notebooks whose exercises you checked in this kernel, in one ("07") or in "all"."""
    checked = {number[:2] for number in _state}
    numbers = [
        n for n in sorted(EXERCISES) if notebook == "all" or (n[:2] == notebook if notebook else n[:2] in checked)
    ]
    if not numbers:
        return print("no exercise was checked in this kernel yet" if not notebook else f"no exercises in {notebook!r}")
    width = max(len(EXERCISES[number]) for number in numbers)
    for number in numbers:
        print(f"{number}  {EXERCISES[number]:{width}}  {_state.get(number, 'not attempted yet')}")
    done = sum(_state.get(number) == "right" for number in numbers)
    print(f"{done} of {len(numbers)} exercises done")


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """[A, N], [B, N] -> [A, B]: the largest difference over the largest number of b; infinite where nan meets none."""
    x, y = a[:, None], b[None]
    gaps = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs().nan_to_num(nan=torch.inf))
    scale = b.nan_to_num(0.0, 0.0, 0.0).abs().amax(1)
    return gaps.amax(2) / torch.where(scale > 0, scale, 1.0)


def _is_stub(error: BaseException) -> bool:
    """An unattempted stub; torch itself raises the same class for what it cannot do with a dtype or a device."""
    return isinstance(error, NotImplementedError) and not re.search("implemented for|Could not run", str(error))
