"""Each check is given right answers, which it must accept, and the known mistakes, which it must call by name.

The answers stand in tests/answers/nNN.py, as a learner would write them; they share no line with the package. They meet
the check's own inputs and, one by one, others that it never uses: more seeds, in float32 and in float64.
"""

import importlib.util
import inspect
import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rlcourse import checks
from rlcourse.checks import verdict
from rlcourse.checks.limit import TimeUp, within

ROOT = Path(__file__).parent.parent


def answers_of(path):
    spec = importlib.util.spec_from_file_location(f"answers_{path.stem}", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


MODULES = [answers_of(path) for path in sorted((Path(__file__).parent / "answers").glob("n*.py"))]
EXERCISES = {name: exercise for module in MODULES for name, exercise in module.EXERCISES.items()}
OWN_COMPARISON = {name for module in MODULES for name in getattr(module, "OWN_COMPARISON", ())}
KIND = {name: kind for module in MODULES for name, kind in getattr(module, "KIND", {}).items()}
BY_VERDICT = [name for name in EXERCISES if name not in OWN_COMPARISON]
RIGHT = [(name, key) for name, (_, answers) in EXERCISES.items() for key in answers if key.startswith("right")]
WRONG = [(name, key) for name, (_, answers) in EXERCISES.items() for key in answers if not key.startswith("right")]
OTHER_INPUTS = [(seed, dtype) for seed in (20, 21, 22, 23) for dtype in (torch.float32, torch.float64)]


def exercises_of_lessons():
    """{name: worked answer} of every exercise in the notebooks."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        worked = ROOT / "notebooks" / "solutions" / "answers" / f"n{path.name[:2]}.py"
        for name, mine in re.findall(r"^checks\.check_(\w+)\((my_\w+)\)", source, re.M):
            found[name] = getattr(answers_of(worked), mine)
    return found


WORKED = exercises_of_lessons()


def check(name):
    return getattr(checks, f"check_{name}")


def right(name):
    return EXERCISES[name][1]["right"]


def in_dtype(fn, dtype):
    """The same answer, its numbers in another dtype."""

    def converted(*args):
        answer = fn(*args)
        return answer.to(dtype) if isinstance(answer, torch.Tensor) else answer

    return converted


def first_name(name):
    return next(iter(inspect.signature(WORKED[name]).parameters))


def message_of(name, fn):
    """The AssertionError's text without the exercise's number, and a newline, with which a key may end too."""
    with pytest.raises(AssertionError) as error:
        check(name)(fn)
    start = f"exercise {EXERCISES[name][0]}: "
    assert str(error.value).startswith(start)
    return str(error.value).removeprefix(start) + "\n"


def says(key, message):
    """Whether the message names this mistake; the sizes in a message about shapes change with the inputs."""
    if "got (" in key:
        return re.match(r"(the shape must be|expected a float tensor of shape) \(.*\).* got \(", message)
    return key in message


def arguments_of(name, monkeypatch):
    """[(args, right, mistakes)], one for each case of the check."""
    seen, module = [], sys.modules[check(name).__module__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "verdict", lambda fn, *rest, **options: seen.append(rest))
        patch.setattr(module, "demand", lambda *args: None, raising=False)
        check(name)(None)
    return seen


def demands_of(name, monkeypatch):
    """The messages of the cases that the check adds to the comparison."""
    seen, module = [], sys.modules[check(name).__module__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "verdict", lambda *args, **options: None)
        patch.setattr(module, "demand", lambda fn, args, right, message: seen.append(message), raising=False)
        check(name)(None)
    return set(seen)


@pytest.fixture(autouse=True)
def not_strict(monkeypatch):
    monkeypatch.delenv("RLCOURSE_STRICT", raising=False)
    monkeypatch.setattr(verdict, "_state", {})


def test_every_check_is_tested():
    assert {name for name in vars(checks) if name.startswith("check_")} == {f"check_{name}" for name in EXERCISES}
    assert verdict.EXERCISES == {number: name for name, (number, _) in EXERCISES.items()}


@pytest.mark.parametrize("name", EXERCISES)
def test_banks_are_large_enough(name):
    keys = list(EXERCISES[name][1])
    assert sum(not key.startswith("right") for key in keys) >= 6 and sum(key.startswith("right") for key in keys) >= 2


@pytest.mark.parametrize("name, key", RIGHT)
@pytest.mark.parametrize("strict", ["0", "1"])
def test_right_answers_are_accepted(name, key, strict, monkeypatch, capsys):
    monkeypatch.setenv("RLCOURSE_STRICT", strict)
    number, answers = EXERCISES[name]
    assert check(name)(answers[key]) is None
    assert capsys.readouterr().out == f"exercise {number}: right\n"


@pytest.mark.parametrize("name, key", RIGHT)
def test_right_answers_are_accepted_on_other_inputs(name, key, monkeypatch):
    for case in OTHER_INPUTS:
        monkeypatch.setattr(verdict, "CASES", [case])
        check(name)(EXERCISES[name][1][key])


@pytest.mark.parametrize("name, key", WRONG)
def test_mistakes_are_named(name, key, capsys):
    assert key in message_of(name, EXERCISES[name][1][key])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name, key", WRONG)
def test_mistakes_are_named_on_other_inputs(name, key, monkeypatch):
    for case in OTHER_INPUTS:
        monkeypatch.setattr(verdict, "CASES", [case])
        message = message_of(name, EXERCISES[name][1][key])
        assert says(key, message), (case, message)


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_an_answer_in_another_dtype_is_judged_by_its_numbers(name, dtype):
    for key, fn in EXERCISES[name][1].items():
        if key.startswith("right") and KIND.get(name) == "integer":
            assert "must be whole numbers" in message_of(name, in_dtype(fn, dtype))
        elif key.startswith("right"):
            check(name)(in_dtype(fn, dtype))
        elif "its gradient" in key and dtype != torch.float64:
            check(name)(in_dtype(fn, dtype))  # 16 bits do not show how a number changes
        elif not re.search("int64|must be (whole|floating)", key):
            message = message_of(name, in_dtype(fn, dtype))
            assert says(key, message) or "expected" in key + message, (key, message)


@pytest.mark.parametrize("name", EXERCISES)
def test_integers_and_complex_numbers(name, monkeypatch, capsys):
    fractions = name in OWN_COMPARISON or any((x != x.round()).any() for _, x, _ in arguments_of(name, monkeypatch))
    capsys.readouterr()
    if fractions:
        assert "expected\n" not in message_of(name, in_dtype(right(name), torch.int64))
    elif KIND.get(name) == "float":
        assert "must be floating-point numbers" in message_of(name, in_dtype(right(name), torch.int64))
    else:
        check(name)(in_dtype(right(name), torch.int64))
    assert "complex64" in message_of(name, in_dtype(right(name), torch.complex64))


@pytest.mark.parametrize("name", BY_VERDICT)
def test_every_mistake_that_a_check_knows_is_made_above(name, monkeypatch):
    wrong = [key for key in EXERCISES[name][1] if not key.startswith("right")]
    for _, _, known in arguments_of(name, monkeypatch):
        named = {key: [mistake for mistake in known if key in f"{mistake}\n"] for key in wrong}
        assert len(known) >= 3 and all(len(mistakes) <= 1 for mistakes in named.values())
        assert {mistake for mistakes in named.values() for mistake in mistakes} == set(known)
    assert all(any(key in message for key in wrong) for message in demands_of(name, monkeypatch))


@pytest.mark.parametrize("name", BY_VERDICT)
def test_inputs(name, monkeypatch):
    """Other numbers in each case, in its dtype, whatever the global seed; none that asks for a gradient goes unused."""
    torch.manual_seed(1)
    state, found = torch.get_rng_state(), arguments_of(name, monkeypatch)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    again = arguments_of(name, monkeypatch)
    assert str(found) == str(again) and len({str(args) for args, _, _ in found}) == len(found) >= 3
    assert {dtype for _, dtype in verdict.CASES} == {torch.float32, torch.float64}
    for (args, _, _), (_, dtype) in zip(found, verdict.CASES):
        assert all(x.dtype == dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point())
        if any(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
            message = message_of(name, lambda *args: right(name)(*args).detach())
            assert "no gradient reaches the arguments" in message
            assert any("its gradient" in key for key in EXERCISES[name][1])  # and half of it is not enough


@pytest.mark.parametrize("name", EXERCISES)
def test_unattempted(name, monkeypatch, capsys):
    def stub(*args):
        raise NotImplementedError

    assert check(name)(stub) is None
    assert capsys.readouterr().out == f"exercise {EXERCISES[name][0]}: not attempted yet\n"
    monkeypatch.setenv("RLCOURSE_STRICT", "1")
    with pytest.raises(NotImplementedError):
        check(name)(stub)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", EXERCISES)
def test_nothing_returned(name):
    assert "nothing is returned" in message_of(name, lambda *args: None)


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("answer", [0.5, 1, True, [1.0], (torch.ones(2), 1), "text", np.ones(3), {}], ids=repr)
def test_wrong_type(name, answer):
    assert re.search(f"expected a (float )?tensor.*got {type(answer).__name__}", message_of(name, lambda *args: answer))


@pytest.mark.parametrize("name", EXERCISES)
def test_wrong_shape(name):
    for answer in (torch.rand(7, 3), torch.rand(7, 3, requires_grad=True), torch.zeros(7, 3, dtype=torch.bool)):
        assert re.search(r"shape.*got \(7, 3\)", message_of(name, lambda *args, answer=answer: answer))


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nan_is_not_right(name, wrong):
    message_of(name, lambda *args: right(name)(*args) * wrong)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_learners_own_error_comes_through(name):
    def broken(*args):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as error:
        check(name)(broken)
    start = f"exercise {EXERCISES[name][0]}: your function raised this for the arguments {first_name(name)}: "
    assert error.value.__notes__[0].startswith(start) and len(error.value.__notes__) == 1
    assert error.traceback[-1].name == "broken" and len(error.traceback) <= 5


@pytest.mark.parametrize("name", BY_VERDICT)
def test_an_answer_that_changes_its_arguments_in_place_cannot_pass_by_it(name):
    """The check hands out copies: zeroing the arguments and returning zeros is wrong, twice in a row."""

    def zeros(*args):
        for x in args:
            if isinstance(x, torch.Tensor):
                x.data.zero_()
        return right(name)(*args) * 0

    for _ in range(2):
        with pytest.raises((AssertionError, RuntimeError, IndexError)):
            check(name)(zeros)
    check(name)(right(name))


@pytest.mark.parametrize("name", EXERCISES)
def test_an_argument_that_is_changed_in_place_is_named(name):
    def in_place(*args):
        answer = right(name)(*args)
        args[0].clear() if isinstance(args[0], list) else args[0].data.add_(1)
        return answer

    assert f"your function changes its argument `{first_name(name)}` in place" in message_of(name, in_place)


@pytest.mark.parametrize("name", BY_VERDICT)
def test_a_right_answer_may_write_the_same_numbers_into_its_arguments(name):
    def in_place(*args):
        for x in args:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                x.mul_(1)
        return right(name)(*args)

    check(name)(in_place)


@pytest.mark.parametrize("name", BY_VERDICT)
def test_the_arguments_are_told_by_name(name, monkeypatch):
    (args, _, _), *_ = arguments_of(name, monkeypatch)
    names = list(inspect.signature(WORKED[name]).parameters)
    message = message_of(name, next(fn for key, fn in EXERCISES[name][1].items() if "expected\n" in key))
    assert len(names) == len(args) and re.findall(r"^(\w+) =", message.split("\nfor the arguments\n")[1], re.M) == names


def new_threads(before):
    time.sleep(0.01)
    return [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]


def patient(*args):
    while True:
        pass


def stubborn(*args):
    while True:
        try:
            for _ in range(100):
                pass
        except Exception:
            pass


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("endless", [patient, stubborn])
def test_an_endless_loop_is_ended(name, endless, monkeypatch):
    monkeypatch.setattr(verdict, "SECONDS", 0.02)
    start, before = time.monotonic(), threading.enumerate()
    assert message_of(name, endless).startswith("no answer after 0.")
    assert time.monotonic() - start < 5 and not new_threads(before)
    monkeypatch.undo()
    check(name)(right(name))


def test_the_time_limit_works_in_another_thread(monkeypatch):
    monkeypatch.setattr(verdict, "SECONDS", 0.02)
    messages = []
    thread = threading.Thread(target=lambda: messages.append(message_of("gae", stubborn)))
    thread.start()
    thread.join(10)
    assert messages == ["no answer after 0.02 seconds: an endless loop?\n"]


def test_the_time_limit_never_strikes_afterwards():
    """Work that takes just about as long as it may: either it ends or it does not, and nothing comes later."""
    before, ends = threading.enumerate(), []

    def work(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.0005)
        return "ended"

    for n in range(100):
        try:
            ends.append(within(0.01, lambda n=n: work(0.002 * (n % 20))))
        except TimeUp:
            ends.append("stopped")
        for _ in range(100):  # where a late interrupt would strike
            pass
    assert len(ends) == 100 and set(ends) == {"ended", "stopped"}
    assert not new_threads(before)


def test_a_wait_outside_python_is_left_behind():
    start = time.monotonic()
    with pytest.raises(TimeUp):
        within(0.02, lambda: time.sleep(3))
    assert time.monotonic() - start < 2.5


def test_the_check_answers_although_a_bare_except_goes_on(monkeypatch):
    go_on = [True]

    def deaf(*args):
        while go_on:
            try:
                sum(range(1000))
            except:  # noqa: E722
                pass

    monkeypatch.setattr(verdict, "SECONDS", 0.02)
    assert "endless loop" in message_of("gae", deaf)
    go_on.clear()


def test_what_is_right_for_the_first_inputs_only():
    calls = []

    def first_only(*args):
        calls.append(args)
        return right("gae")(*args) * (1 if len(calls) == 1 else 2)

    assert "right for the first inputs, wrong for others" in message_of("gae", first_only)
    assert len(calls) == 2


def test_float32_only_is_enough_but_a_real_error_in_float64_is_none():
    checks.check_gae(lambda r, *rest: right("gae")(r + (r @ torch.zeros(5, 5)), *rest))

    def broken(r, *rest):
        return right("gae")(r, *rest) if r.dtype == torch.float32 else [][0]

    with pytest.raises(IndexError):
        checks.check_gae(broken)


def test_torch_raises_the_class_of_a_stub_too():
    """An attempt that calls softmax on integers is no stub."""
    with pytest.raises(NotImplementedError, match="implemented for"):
        checks.check_gae(lambda r, *rest: r.long().softmax(1))


def test_the_check_wants_the_function_itself():
    assert "your function itself" in message_of("gae", torch.ones(2))


def test_a_reward_that_is_always_the_same_is_questioned(capsys):
    checks.check_reward(lambda prompts, responses: torch.ones(len(responses)))
    assert "none of our sample responses earns more than another" in capsys.readouterr().out


def test_a_wrong_gradient_is_told_by_the_parts_of_the_loss():
    message = message_of("loss_with_baseline", lambda *args: 3 * right("loss_with_baseline")(*args))
    assert re.findall(r"^(.+): expected$", message, re.M) == ["loss", "gradient on logprobs", "gradient on values"]


def test_a_check_whose_mistakes_coincide_does_not_run():
    @verdict.exercise("99.1")
    def check_nothing(fn, draw):
        x = draw.randn(3)
        verdict.verdict(fn, (x,), x, {"twice": 2 * x, "doubled": x + x})

    del verdict.EXERCISES["99.1"]
    with pytest.raises(RuntimeError, match="no inputs found"):
        check_nothing(lambda x: x)


def test_progress(capsys):
    checks.progress()
    assert capsys.readouterr().out == "no exercise was checked in this kernel yet\n"
    checks.check_gae(right("gae"))
    message_of("kl_shaped_rewards", lambda *args: None)
    with pytest.raises(KeyError):
        checks.check_reward(lambda prompts, responses: {}[0])
    capsys.readouterr()
    checks.progress()
    assert capsys.readouterr().out == (
        "07.1  kl_shaped_rewards       wrong so far\n"
        "07.2  gae                     right\n"
        "07.3  clipped_surrogate_loss  not attempted yet\n"
        "07.4  reward                  wrong so far\n"
        "1 of 4 exercises done\n"
    )
    message_of("gae", lambda *args: None)
    checks.check_k3(right("k3"))
    capsys.readouterr()
    checks.progress()
    assert capsys.readouterr().out.endswith("07.4  reward                  wrong so far\n1 of 8 exercises done\n")
    checks.progress("00")
    assert capsys.readouterr().out.endswith("not attempted yet\n0 of 4 exercises done\n")
    checks.progress("all")
    assert capsys.readouterr().out.endswith(f"1 of {len(EXERCISES)} exercises done\n")
    checks.progress("no such")
    assert capsys.readouterr().out == "no exercises in 'no such'\n"


def test_worked_answers_are_right_on_other_inputs(monkeypatch):
    assert set(WORKED) == set(EXERCISES)
    for name, fn in WORKED.items():
        for case in [*verdict.CASES, *OTHER_INPUTS[::2]]:
            monkeypatch.setattr(verdict, "CASES", [case] if case[1] == torch.float32 else [(0, torch.float32), case])
            check(name)(fn)
