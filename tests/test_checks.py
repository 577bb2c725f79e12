"""Each check is given right answers, which it must accept, and the known mistakes, which it must call by name.

The answers stand in tests/answers/nNN.py, as a learner would write them; they share no line with the package.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from rlcourse import checks


def answers_of(path):
    spec = importlib.util.spec_from_file_location(f"answers_{path.stem}", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


MODULES = [answers_of(path) for path in sorted((Path(__file__).parent / "answers").glob("n*.py"))]
EXERCISES = {name: exercise for module in MODULES for name, exercise in module.EXERCISES.items()}
OWN_COMPARISON = {name for module in MODULES for name in getattr(module, "OWN_COMPARISON", ())}
BY_VERDICT = [name for name in EXERCISES if name not in OWN_COMPARISON]
RIGHT = [(name, key) for name, (_, answers) in EXERCISES.items() for key in answers if key.startswith("right")]
WRONG = [(name, key) for name, (_, answers) in EXERCISES.items() for key in answers if not key.startswith("right")]


def check(name):
    return getattr(checks, f"check_{name}")


@pytest.fixture(autouse=True)
def not_strict(monkeypatch):
    monkeypatch.delenv("RLCOURSE_STRICT", raising=False)


def test_a_reward_that_is_always_the_same_is_questioned(capsys):
    checks.check_reward(lambda prompts, responses: torch.ones(len(responses)))
    assert "all score the same" in capsys.readouterr().out


def test_every_check_is_tested():
    assert {name for name in vars(checks) if name.startswith("check_")} == {f"check_{name}" for name in EXERCISES}


@pytest.mark.parametrize("name, key", RIGHT)
@pytest.mark.parametrize("strict", ["0", "1"])
def test_right_answers_are_accepted(name, key, strict, monkeypatch, capsys):
    monkeypatch.setenv("RLCOURSE_STRICT", strict)
    number, answers = EXERCISES[name]
    assert check(name)(answers[key]) is None
    assert capsys.readouterr().out == f"exercise {number}: right\n"


@pytest.mark.parametrize("name, key", WRONG)
def test_mistakes_are_named(name, key, capsys):
    number, answers = EXERCISES[name]
    with pytest.raises(AssertionError) as error:
        check(name)(answers[key])
    assert str(error.value).startswith(f"exercise {number}: ") and key in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", BY_VERDICT)
def test_every_mistake_that_a_check_knows_is_made_above(name, monkeypatch):
    known = {}
    module = sys.modules[check(name).__module__]
    monkeypatch.setattr(module, "verdict", lambda name, fn, args, right, mistakes: known.update(mistakes))
    check(name)(None)
    wrong = [key for key in EXERCISES[name][1] if not key.startswith("right")]
    assert len(known) >= 3 and all(sum(key in mistake for key in wrong) == 1 for mistake in known)


@pytest.mark.parametrize("name", EXERCISES)
def test_unattempted(name, monkeypatch, capsys):
    def stub(*args):
        raise NotImplementedError

    assert check(name)(stub) is None
    assert capsys.readouterr().out == f"exercise {EXERCISES[name][0]}: not attempted yet\n"
    monkeypatch.setenv("RLCOURSE_STRICT", "1")
    with pytest.raises(NotImplementedError):
        check(name)(stub)


@pytest.mark.parametrize("name", EXERCISES)
def test_nothing_returned(name):
    with pytest.raises(AssertionError, match="nothing is returned"):
        check(name)(lambda *args: None)


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("answer, kind", [(0.5, "float"), ([1.0], "list"), ("text", "str")])
def test_wrong_type(name, answer, kind):
    with pytest.raises(AssertionError, match=f"expected a (float )?tensor.*got {kind}"):
        check(name)(lambda *args: answer)


@pytest.mark.parametrize("name", EXERCISES)
def test_wrong_shape(name):
    with pytest.raises(AssertionError, match=r"shape.*got \(7, 3\)"):
        check(name)(lambda *args: torch.rand(7, 3))


@pytest.mark.parametrize("name", BY_VERDICT)
def test_nan_is_not_right(name):
    right = EXERCISES[name][1]["right"]
    with pytest.raises(AssertionError):
        check(name)(lambda *args: right(*args) * float("nan"))


@pytest.mark.parametrize("name", EXERCISES)
def test_the_learners_own_error_comes_through(name):
    def broken(*args):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check(name)(broken)


@pytest.mark.parametrize("name", BY_VERDICT)
def test_an_answer_that_changes_its_arguments_in_place_cannot_pass_by_it(name):
    """The check hands out copies: zeroing the arguments and returning zeros is wrong, twice in a row."""

    def zeros(*args):
        for x in args:
            if isinstance(x, torch.Tensor):
                x.zero_()
        return EXERCISES[name][1]["right"](*args) * 0

    for _ in range(2):
        with pytest.raises((AssertionError, RuntimeError, IndexError)):
            check(name)(zeros)
    check(name)(EXERCISES[name][1]["right"])


@pytest.mark.parametrize("name", EXERCISES)
def test_a_check_leaves_the_random_numbers_alone(name):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    check(name)(EXERCISES[name][1]["right"])
    assert torch.get_rng_state().equal(state)
