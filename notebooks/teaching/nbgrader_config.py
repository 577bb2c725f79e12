"""nbgrader's settings for this course; nbgrader reads them when it is started in this folder."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader calls alembic

c = get_config()  # noqa: F821 (given by nbgrader)
c.CourseDirectory.root = str(ROOT)
c.CourseDirectory.course_id = "rlcourse"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}
c.ClearSolutions.text_stub = "*Your answer here.*"
c.Execute.timeout = 120  # seconds for a cell; the project's training takes the longest
c.Execute.iopub_timeout = 30  # seconds that a busy machine may take to pass on what a cell prints
c.GradeApart.closed_book = ["ps1", "ps2"]  # these ask for functions that rlcourse has
# nbgrader's own lists, with ours between; by name, so that only grading has to wait for torch
ours, theirs = "grade_apart.", "nbgrader.preprocessors."
c.Autograde.sanitize_preprocessors = [
    theirs + "ClearOutput",
    ours + "RestoreCells",
    theirs + "DeduplicateIds",
    theirs + "OverwriteKernelspec",
    theirs + "OverwriteCells",
    theirs + "CheckCellMetadata",
]
c.Autograde.autograde_preprocessors = [
    ours + "GradeApart",
    theirs + "LimitOutput",
    theirs + "SaveAutoGrades",
    theirs + "AssignLatePenalties",
    theirs + "CheckCellMetadata",
]
