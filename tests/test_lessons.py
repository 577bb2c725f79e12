"""What every lesson owes its reader: exercises with a card, hints, a stub, a check and an answer; progress; a quiz."""

import inspect
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from rlcourse import checks

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
ANSWERS = "\n".join(path.read_text(encoding="utf-8") for path in (NOTEBOOKS / "solutions" / "answers").glob("n*.py"))
CARD = re.compile(r"\*\*Difficulty\*\* ([●○]{5}) · \*\*(\d+) minutes\*\* · \*\*Why it matters:\*\* \S[^\n]*[.!?]")
DETAILS = re.compile(r"<details><summary>([^\n]+)</summary>\n\n(.+?)\n\n</details>", flags=re.S)
FIND_THE_BUG = re.compile(r"find the bugs?")


class Cell(NamedTuple):
    kind: str
    source: str


class Exercise(NamedTuple):
    number: str
    title: str
    text: str  # of its Markdown cells, card and hints included
    code: str


class Choice(NamedTuple):
    letter: str
    right: bool
    explanation: str


def cells(path: Path) -> list[Cell]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [Cell(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def exercises(path: Path) -> list[Exercise]:
    """In order; the parts "7.1: find the bug" and "7.1, your turn" are one exercise."""
    found, inside = {}, None
    for cell in cells(path):
        heading = re.match(r"### Exercise (\d+\.\d+)(?:: ([^\n]+)|, your turn)", cell.source)
        if cell.kind == "markdown":
            inside = heading[1] if heading else None
        if inside:
            old = found.get(inside, Exercise(inside, heading[2] if heading else "", "", ""))
            part = {"text": old.text + cell.source + "\n"} if heading else {"code": old.code + cell.source + "\n"}
            found[inside] = old._replace(**part)
    return list(found.values())


def quiz(path: Path) -> list[str]:
    """The Markdown of each question; [] where the last section is no quiz."""
    sections = [i for i, cell in enumerate(cells(path)) if cell.kind == "markdown" and re.search(r"^## ", cell.source)]
    last = cells(path)[sections[-1] :]
    if not last[0].source.startswith("## Quiz\n") or any(cell.kind != "markdown" for cell in last):
        return []
    return [cell.source for cell in last[1:]]


def choices(question: str) -> list[Choice]:
    found = []
    for summary, body in DETAILS.findall(question):
        verdict, explanation = re.match(r"\*\*(Right|Not quite)\.\*\* (.+)", body, flags=re.S).groups()
        assert re.match(r"[A-D]\. \S", summary), summary
        found.append(Choice(summary[0], verdict == "Right", explanation))
    return found


def numbers(path: Path, count: int) -> list[str]:
    """7.1, 7.2, ... for a lesson 07_..."""
    return [f"{int(path.name[:2])}.{i}" for i in range(1, count + 1)]


every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


@every_lesson
def test_two_to_four_exercises_one_of_them_a_bug(path):
    found = exercises(path)
    assert 2 <= len(found) <= 4
    assert [exercise.number for exercise in found] == numbers(path, len(found))
    assert any(FIND_THE_BUG.fullmatch(exercise.title) for exercise in found)


@every_lesson
def test_each_exercise_has_a_card_under_its_heading(path):
    for exercise in exercises(path):
        card = CARD.fullmatch(re.split(r"\n+", exercise.text)[1])
        assert card, f"{exercise.number}: {exercise.text[:200]}"
        assert re.fullmatch("●+○*", card[1]) and 1 <= int(card[2]) <= 60, exercise.number
        assert exercise.text.count("**Difficulty**") == 1, exercise.number


@every_lesson
def test_the_head_says_how_long_the_exercises_take(path):
    minutes = sum(int(CARD.search(exercise.text)[2]) for exercise in exercises(path))
    assert re.search(rf"\b{minutes} (?:to solve|for the exercises)", cells(path)[0].source), f"{minutes} minutes"


@every_lesson
def test_each_exercise_has_three_hints(path):
    for exercise in exercises(path):
        hints = DETAILS.findall(exercise.text)
        assert [summary for summary, _ in hints] == ["Hint 1", "Hint 2", "Hint 3"], exercise.number
        assert exercise.text.count("<details>") == exercise.text.count("</details>") == 3, exercise.number
        assert not re.search(r"\*Hint \d", exercise.text), f"{exercise.number}: a hint that is not folded"


@every_lesson
def test_each_exercise_has_a_stub_a_check_and_an_answer(path):
    for exercise in exercises(path):
        stubs = re.findall(r"def (my_\w+)\([^\n]*\n    raise NotImplementedError$", exercise.code, flags=re.M)
        called = re.findall(r"^checks\.(check_\w+)\((my_\w+)\)$", exercise.code, flags=re.M)
        assert len(stubs) == len(called) == 1 and called[0][1] == stubs[0], exercise.number
        check = getattr(checks, called[0][0])
        section, number = exercise.number.split(".")
        assert inspect.getdoc(check).startswith(f"Exercise {int(section):02}.{number}: "), exercise.number
        assert re.search(rf"^def {stubs[0]}\(", ANSWERS, flags=re.M), f"{exercise.number}: no worked answer"


@every_lesson
def test_progress_stands_once_behind_the_exercises(path):
    sources = [cell.source for cell in cells(path)]
    (at,) = [i for i, source in enumerate(sources) if "checks.progress(" in source]
    assert sources[at] == "checks.progress()" and sources[at - 1].startswith("### Where you stand\n")
    assert at - 2 == max(i for i, source in enumerate(sources) if source.startswith("checks.check_"))


@every_lesson
def test_the_quiz_is_last_and_has_three_to_five_questions(path):
    found = quiz(path)
    assert 3 <= len(found) <= 5
    asked = [re.match(r"### Question (\d+\.\d+)\n+[^<\s]", question) for question in found]
    assert all(asked) and [heading[1] for heading in asked] == numbers(path, len(found))


@every_lesson
def test_each_question_has_one_right_answer_and_explains_all(path):
    for question in quiz(path):
        found, title = choices(question), question.splitlines()[0]
        assert question.count("<details>") == question.count("</details>") == len(found), title
        assert 3 <= len(found) <= 4 and "".join(choice.letter for choice in found) == "ABCD"[: len(found)], title
        assert sum(choice.right for choice in found) == 1, title
        for choice in found:
            assert len(choice.explanation.split()) >= 8, f"{title}, {choice.letter}"
        assert not any("$" in summary for summary, _ in DETAILS.findall(question)), f"{title}: math in a summary"


@every_lesson
def test_no_letter_is_right_more_than_twice(path):
    right = [choice.letter for question in quiz(path) for choice in choices(question) if choice.right]
    assert right and all(right.count(letter) <= 2 for letter in right)
