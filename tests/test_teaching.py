"""Graded assignments, from the source to the grades: nbgrader hands out, students hand in, every cell gets its points.

The commands are those of notebooks/teaching/grading.md, in a copy of the course folder.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader", reason="grading needs the extra `teach`: pip install -c constraints.txt -e .[teach]")
from nbgrader.api import Gradebook

TEACHING = Path(__file__).parents[1] / "notebooks" / "teaching"
POINTS = {
    "ps1": dict(
        score_visible=1, score_hidden=3, togo_visible=1, togo_hidden=3, togo_garbage=1, loss_visible=1, loss_hidden=3,
        loss_gradient=1, baseline_visible=1, baseline_all_rated=2, baseline_some_rated=2, baseline_alone=1,
        curve_visible=1, curve_hidden=2, curve_climbs=1,
    ),
    "ps2": dict(
        logprobs_visible=1, logprobs_hidden=2, logprobs_warm=1, logprobs_gpt2=1, shaped_visible=1, shaped_hidden=3,
        shaped_sums=1, gae_visible=1, gae_hidden=3, gae_lam_1=1, clip_visible=1, clip_equal=2, clip_unequal=2,
        dpo_visible=1, dpo_hidden=2, dpo_bradley_terry=1, dpo_large=1,
    ),
    "project": dict(
        reward_visible=1, reward_hidden=3, reward_spread=2, accounts_visible=1, accounts_hidden=3, accounts_add_up=1,
        report_visible=1, report_hidden=3, report_failures=2,
    ),
}  # fmt: skip
IN_WORDS = {
    "ps1": dict(christmas=3, lengths=3),
    "ps2": dict(happiest=3, first_ratio=2),
    "project": dict(wish=4, words=9),
}

# Typical wrong answers of problem set 1, by the cell they stand in. None earns a point, except in PARTLY.
WRONG = {
    "score": """def my_softmax_score(logits, actions):  # the normaliser is forgotten
    return torch.nn.functional.one_hot(actions, logits.shape[-1]).float()""",
    "togo": """def my_stars_to_go(stars, mask, gamma):  # what was, instead of what comes
    return (torch.where(mask > 0, stars, 0) * gamma).cumsum(1) * mask""",
    "loss": """def my_reinforce_loss(logprobs, advantages, mask):  # uphill
    return (logprobs * advantages * mask).sum(1).mean()""",
    "baseline": """def my_baseline(points, rated):  # oneself included
    return (points * rated).sum(1, keepdim=True) / rated.sum(1, keepdim=True) * torch.ones_like(points)""",
    "curve": """def my_ideal_curve(logits, stars, steps, lr):  # downhill
    curve = [(logits.softmax(-1) * stars).sum()]
    for _ in range(steps):
        pi = logits.softmax(-1)
        logits = logits - lr * pi * (stars - (pi * stars).sum())
        curve.append((logits.softmax(-1) * stars).sum())
    return torch.stack(curve)""",
}
PARTLY = {
    "loss": """def my_reinforce_loss(logprobs, advantages, mask):  # a gradient flows through the advantages
    return -(logprobs * advantages * mask).sum(1).mean()""",
    "baseline": """def my_baseline(points, rated):  # as if all were rated
    return (points.sum(1, keepdim=True) - points) / (points.shape[1] - 1)""",
    "curve": WRONG["curve"],
}
BORROWED = {
    "togo": """def my_stars_to_go(stars, mask, gamma):
    from rlcourse.returns import discounted_returns
    return discounted_returns(stars, mask, gamma)""",
    "loss": """import rlcourse.losses

def my_reinforce_loss(logprobs, advantages, mask):
    return rlcourse.losses.reinforce_loss(logprobs, advantages, mask)""",
}
ENDLESS = {
    "togo": """def my_stars_to_go(stars, mask, gamma):
    while True:
        pass""",
    "baseline": """def my_baseline(points, rated):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass""",
}
SHORT = {  # the project's run, as long as a test needs
    "settings": "my_settings = dict(seeds=2, iterations=2, batch=8, new_tokens=8, kl_coef=0.05, learning_rate=3e-4)"
}
# Run by nbgrader alone, in one kernel, this earns a wholly wrong problem set 1 18 of its 24 tested points.
PATCHES = """import builtins
import sys

import torch
from rlcourse import checks

builtins.abs = lambda x: 0.0
builtins.all = lambda x: True
builtins.print = lambda *arguments, **options: None
torch.allclose = torch.equal = torch.Tensor.allclose = torch.Tensor.equal = lambda *arguments, **options: True
torch.Tensor.__lt__ = lambda *arguments: torch.ones(())
for module in [m for name, m in sys.modules.items() if name.startswith("rlcourse.checks")]:
    for name in [n for n in dir(module) if n.startswith("check_") or n == "verdict"]:
        setattr(module, name, lambda *arguments, **options: None)
get_ipython().showtraceback = get_ipython()._showtraceback = lambda *arguments, **options: None"""
YES = """class Yes(torch.Tensor):
    def __torch_function__(self, *arguments, **options):
        return True

def my_softmax_score(logits, actions):
    import sys
    for module in list(sys.modules.values()):
        for name in [n for n in dir(module) if n.startswith("check_")]:
            setattr(module, name, lambda fn: None)
    torch.allclose = lambda *arguments, **options: True
    return torch.zeros_like(logits).as_subclass(Yes)"""


def run_nbgrader(course: Path, *arguments: str) -> str:
    """One command in the course folder, as a teacher types it; what it says."""
    environment = os.environ | dict(JUPYTER_CONFIG_DIR=str(course / "jupyter"), OMP_WAIT_POLICY="passive")
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=course, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A copy of the course folder, from which all three assignments were handed out."""
    folder = tmp_path_factory.mktemp("teaching") / "course"
    made = shutil.ignore_patterns("release", "submitted", "autograded", "feedback", "gradebook.db", "__pycache__")
    shutil.copytree(TEACHING, folder, ignore=made)
    for assignment in POINTS:
        run_nbgrader(folder, "generate_assignment", assignment)
    return folder


def read(path: Path):
    return nbformat.read(path, as_version=4)


def hand_in(course: Path, assignment: str, student: str, notebook) -> None:
    folder = course / "submitted" / student / assignment
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / f"{assignment}.ipynb")


def grades(course: Path, assignment: str, student: str) -> dict[str, float | None]:
    """Cell -> points; None where a person has to grade."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        found = gradebook.find_submission_notebook(assignment, assignment, student).grades
        return {grade.name: grade.auto_score for grade in found}


def errors(course: Path, student: str) -> dict[str, str]:
    """Cell of problem set 1 -> what its test said, where it failed."""
    cells = read(course / f"autograded/{student}/ps1/ps1.ipynb").cells
    return {grade_id(c): o.evalue for c in cells for o in c.get("outputs", []) if o.output_type == "error"}


def grade_id(cell) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def with_answers(notebook, answers: dict[str, str]):
    """A copy of a notebook, some answers replaced."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        cell.source = answers.get(grade_id(cell), cell.source)
    return notebook


def with_cell(notebook, source: str, at: int = 2):
    notebook = copy.deepcopy(notebook)
    notebook.cells.insert(at, nbformat.v4.new_code_cell(source))
    return notebook


def tampered(notebook):
    """Tests rewritten, worth more, deleted, made an answer, made nobody's; a copy of a test that prints."""
    notebook = copy.deepcopy(notebook)
    cells = {grade_id(cell): cell for cell in notebook.cells}
    for name in ("score_visible", "score_hidden", "togo_visible", "setup"):
        cells[name].source = "print('right')"
        cells[name].metadata.nbgrader["locked"] = False
    cells["togo_hidden"].metadata.nbgrader["points"] = 100
    cells["loss_hidden"].metadata.nbgrader["solution"] = True
    cells["loss_gradient"].metadata.nbgrader["grade_id"] = "mine"
    cells["baseline_some_rated"].metadata.pop("nbgrader")
    cells["curve_visible"].cell_type = "raw"
    for key in ("outputs", "execution_count"):
        cells["curve_visible"].pop(key, None)
    notebook.cells = [c for c in notebook.cells if grade_id(c) not in ("baseline_visible", "curve_hidden")]
    duplicate = copy.deepcopy(cells["curve_climbs"]) | dict(source="print('right')", id="duplicate")
    return nbformat.from_dict(notebook | dict(cells=[*notebook.cells, duplicate]))


@pytest.fixture(scope="module")
def problem_set_1(course) -> Path:
    """All submissions of problem set 1, graded in one go."""
    right, empty = read(course / "source/ps1/ps1.ipynb"), read(course / "release/ps1/ps1.ipynb")
    wrong = with_answers(right, WRONG)
    submissions = dict(
        right=right,
        half=with_answers(right, PARTLY),
        wrong=wrong,
        empty=empty,
        tampered=tampered(wrong),
        patched=with_cell(with_answers(wrong, dict(score=YES)), PATCHES),
        endless=with_cell(with_answers(right, ENDLESS), "while True:\n    pass"),
        borrowed=with_cell(with_answers(right, BORROWED), "import os\n\nos._exit(0)"),  # and ends the kernel
    )
    for student, notebook in submissions.items():
        hand_in(course, "ps1", student, notebook)
    run_nbgrader(course, "autograde", "ps1", "--GradeApart.timeout=5", "--GradeApart.call_seconds=3")
    return course


def earned(assignment: str, **lost: float) -> dict[str, float]:
    """Full points, less those cells; `togo=0` stands for all cells of togo."""
    cells = POINTS[assignment]
    assert all(any(re.match(name, cell) for cell in cells) for name in lost)
    return {cell: next((x for n, x in lost.items() if re.match(n, cell)), points) for cell, points in cells.items()}


NOTHING = dict.fromkeys(("score", "togo", "loss", "baseline", "curve"), 0)
EXPECTED = dict(
    right=earned("ps1"),
    half=earned("ps1", loss_gradient=0, baseline_some_rated=0, baseline_alone=0, curve=0),
    wrong=earned("ps1", **NOTHING),
    empty=earned("ps1", **NOTHING),
    tampered=earned("ps1", **NOTHING),
    patched=earned("ps1", **NOTHING),
    endless=earned("ps1", togo=0, baseline=0),
    borrowed=earned("ps1", togo=0, loss=0),
)


@pytest.mark.slow
@pytest.mark.parametrize("student", EXPECTED)
def test_every_cell_of_every_submission_gets_its_points(problem_set_1, student):
    """Right, half-right, wrong and empty ones; and those that attack the tests, loop, borrow or pull the plug."""
    found = grades(problem_set_1, "ps1", student)
    in_words = {cell: found.pop(cell) for cell in IN_WORDS["ps1"]}
    assert found == EXPECTED[student], errors(problem_set_1, student)
    assert in_words == dict.fromkeys(in_words, 0 if student == "empty" else None), "words are graded by people"


@pytest.mark.slow
@pytest.mark.parametrize("assignment", ["ps2", "project"])
def test_the_right_and_the_empty_submission(course, assignment):
    right = with_answers(read(course / f"source/{assignment}/{assignment}.ipynb"), SHORT)
    hand_in(course, assignment, "right", right)
    hand_in(course, assignment, "empty", read(course / f"release/{assignment}/{assignment}.ipynb"))
    run_nbgrader(course, "autograde", assignment, "--GradeApart.timeout=600")
    words = IN_WORDS[assignment]
    assert grades(course, assignment, "right") == POINTS[assignment] | dict.fromkeys(words)
    assert grades(course, assignment, "empty") == dict.fromkeys(POINTS[assignment] | words, 0)


@pytest.mark.slow
def test_feedback_names_the_mistake_and_grades_can_be_exported(problem_set_1):
    run_nbgrader(problem_set_1, "generate_feedback", "ps1", "--student=wrong")
    feedback = (problem_set_1 / "feedback/wrong/ps1/ps1.html").read_text(encoding="utf-8")
    assert "the normaliser is forgotten" in feedback
    run_nbgrader(problem_set_1, "export", "--to=grades.csv")
    header, *rows = (line.split(",") for line in (problem_set_1 / "grades.csv").read_text().splitlines())
    table = [dict(zip(header, row)) for row in rows]
    (half,) = [row for row in table if row["assignment"] == "ps1" and row["student_id"] == "half"]
    assert float(half["score"]) == sum(EXPECTED["half"].values()) and float(half["max_score"]) == 30


@pytest.mark.slow
@pytest.mark.parametrize("assignment", ["ps1", "ps2"])
def test_the_source_validates(course, assignment):
    """The project's source is run from top to bottom by its right submission."""
    said = run_nbgrader(course, "validate", f"source/{assignment}/{assignment}.ipynb")
    assert "Success! Your notebook passes all the tests." in said


@pytest.mark.slow
@pytest.mark.parametrize("assignment", POINTS)
def test_what_is_handed_out_holds_no_solutions_and_no_hidden_tests(course, assignment):
    source, release = (read(course / f"{where}/{assignment}/{assignment}.ipynb") for where in ("source", "release"))
    handed_out = {grade_id(cell): cell for cell in release.cells if grade_id(cell)}
    text = "\n".join(cell.source for cell in release.cells)
    assert not re.search(r"BEGIN|END|SOLUTION|HIDDEN|Rubric|checks\.check", text)
    regions = re.compile(r"BEGIN (SOLUTION|HIDDEN TESTS)[^\n]*\n(.*?)\n[^\n]*END \1", re.S)
    for cell in source.cells:
        for _, secret in regions.findall(cell.source):
            for line in (line.strip() for line in secret.splitlines() if len(line.strip()) > 12):
                assert line not in handed_out[grade_id(cell)].source.splitlines(), line
        data = cell.metadata.get("nbgrader", {})
        if data.get("solution"):
            stub = "*Your answer here.*" if data["grade"] else "raise NotImplementedError"
            assert stub in handed_out[grade_id(cell)].source
        assert not cell.get("outputs") or not handed_out.get(grade_id(cell), {}).get("outputs")


@pytest.mark.parametrize("assignment", POINTS)
def test_points_add_up_and_stand_in_the_texts(assignment):
    """30 in each assignment; each task's heading promises what its cells give; every hidden check is strict."""
    promised, given, total = None, 0, 0
    for cell in read(TEACHING / f"source/{assignment}/{assignment}.ipynb").cells:
        heading = re.search(r"^## .*\((\d+) points", cell.source)
        if cell.source.startswith("## "):
            assert promised is None or promised == given, f"before {cell.source.splitlines()[0]}"
            promised, given = (int(heading[1]) if heading else 0), 0
        points = cell.metadata.get("nbgrader", {}).get("points", 0)
        assert points == (POINTS[assignment] | IN_WORDS[assignment]).get(grade_id(cell), 0)
        given, total = given + points, total + points
        if "checks.check_" in cell.source:
            assert 'os.environ["RLCOURSE_STRICT"] = "1"' in cell.source
        if cell.metadata.get("nbgrader", {}).get("solution") and points:
            assert "*Rubric.*" in cell.source
    assert promised == given and total == 30
