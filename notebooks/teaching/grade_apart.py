"""Grading apart: the tests of an assignment run where a submission cannot reach them.

nbgrader runs the tests in the kernel that ran the student's cells, so a cell may replace `torch.allclose`, a check or
`print` and every test passes. Here the student's cells run in a kernel as usual, but the tests run in nbgrader's own
process. There the student's functions are stand-ins: a call sends the arguments to a worker process that has run the
student's cells, and only numbers, strings and tensors come back (and gradients, through autograd).
"""

import contextlib
import io
import linecache
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import psutil
import torch
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from nbgrader.api import Gradebook
from nbgrader.preprocessors import Execute, NbGraderPreprocessor
from nbgrader.utils import is_grade, is_locked, is_solution
from traitlets import Float, List, Unicode
from worker import receive, send

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS, GRACE_SECONDS = 60, 2
PATIENCE = 6  # times as long by the clock as in processor time, for a busy machine or one who sleeps


class Submission:
    """The worker process of one submission: launched beforehand or when asked, and again after it had to be ended.

    A cell that hung or ended the process is left out when it starts again, and a function that ended it is not called
    again. Seconds are of the worker's processor time.
    """

    def __init__(self, cells: list[str], folder: str, closed_book: bool, cell_seconds: float, call_seconds: float):
        self.cells, self.folder, self.closed_book = list(cells), folder, closed_book
        self.cell_seconds, self.call_seconds = cell_seconds, call_seconds
        self.process, self.ready, self.fatal = None, False, set()

    def ask(self, *message):
        """What the worker answers; its error, or TimeoutError."""
        if not self.ready:
            self._start()
        return self._ask(self.call_seconds, *message)

    def stand_ins(self) -> dict:
        """name -> value, or a function that asks the worker, of everything that is called my_..."""
        names = self.ask("names")
        return {name: self._stand_in(name) if held is None else held["value"] for name, held in names.items()}

    def stop(self) -> None:
        """End the process and what it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
            self.process.wait()
        self.process, self.ready = None, False

    def _start(self) -> None:
        while not self.ready:
            if self.process is None:
                self.launch()
            self._answer(START_SECONDS)
            self.ready = True
            for cell in list(self.cells):
                try:
                    self._ask(self.cell_seconds, "run", cell)
                except (TimeoutError, RuntimeError):
                    self.cells.remove(cell)
                    if self.process is None:
                        break

    def launch(self) -> None:
        """Start the process without waiting for it."""
        command = [sys.executable, str(WORKER), "closed" if self.closed_book else "open"]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, cwd=self.folder, start_new_session=True, **pipes)
        self.answers = queue.Queue()
        threading.Thread(target=_listen, args=(self.process.stdout, self.answers), daemon=True).start()

    def _ask(self, seconds: float, *message):
        try:
            send(self.process.stdin, message)
        except OSError:
            self.answers.put(None)
        return self._answer(seconds)

    def _answer(self, seconds: float):
        try:
            answer = self._wait(seconds)
        except queue.Empty:
            self._interrupt()
            raise TimeoutError(f"no answer within {seconds:g} seconds: an endless loop?") from None
        except BaseException:  # a check ran out of time: the answer may come when another is waited for
            self.stop()
            raise
        match answer:
            case ("ok", value):
                return value
            case ("error", "NotImplementedError", _):
                raise NotImplementedError("not attempted")
            case ("error", str(kind), str(text)):
                raise RuntimeError(f"{kind}: {text}")
        self.stop()
        raise RuntimeError("the process of this submission ended by itself")

    def _wait(self, seconds: float):
        end, limit = time.monotonic() + PATIENCE * seconds, self._used() + seconds
        while time.monotonic() < end and self._used() < limit:
            with contextlib.suppress(queue.Empty):
                return self.answers.get(timeout=0.2)
        raise queue.Empty

    def _used(self) -> float:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.process.pid).cpu_times()
            return times.user + times.system
        return 0.0  # it has ended, and _listen says so

    def _interrupt(self) -> None:
        """As Ctrl-C would; where that does not help, the process is ended."""
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(queue.Empty):
            if self.answers.get(timeout=GRACE_SECONDS) is not None:
                return
        self.stop()

    def _stand_in(self, name: str):
        def call(*args, **kwargs):
            if name in self.fatal:
                raise RuntimeError(f"{name} hung or ended the process before, and is not called again")
            live = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor) and x.requires_grad]
            try:
                answer = self.ask("call", name, _detached(list(args)), _detached(kwargs), live)
            finally:
                if self.process is None:
                    self.fatal.add(name)
            value, gradient, number = (answer[key] for key in ("value", "gradient", "number"))
            if not gradient:
                return value
            if not live:
                return value.requires_grad_()
            return _Call.apply(self, number, value, *(args[i] for i in live))

        call.__name__ = name
        return call


class _Call(torch.autograd.Function):
    """A call whose way back is asked of the worker as well."""

    @staticmethod
    def forward(ctx, submission, number, value, *live):
        ctx.submission, ctx.number = submission, number
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None, None, None, *ctx.submission.ask("pull_back", ctx.number, gradient.contiguous())


def _detached(x):
    if isinstance(x, torch.Tensor):
        return x.detach().clone()
    if isinstance(x, list | tuple):
        return type(x)(_detached(item) for item in x)
    return {key: _detached(item) for key, item in x.items()} if isinstance(x, dict) else x


def _listen(stream, answers: queue.Queue) -> None:
    with contextlib.suppress(Exception):
        while True:
            answers.put(receive(stream))
    answers.put(None)


def is_test(cell) -> bool:
    """A graded cell that is no answer."""
    return cell.cell_type == "code" and is_grade(cell) and not is_solution(cell)


def run_test(cell, names: dict) -> list:
    """The outputs of a test cell that sees nothing of a submission but these names."""
    name, printed, outputs = f"<{cell.metadata.nbgrader.grade_id}>", io.StringIO(), []
    linecache.cache[name] = len(cell.source), None, cell.source.splitlines(keepends=True), name
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(cell.source, name, "exec"), dict(names))
    except (Exception, SystemExit) as error:
        shown = traceback.TracebackException.from_exception(error)
        shown.stack = traceback.StackSummary.from_list([frame for frame in shown.stack if frame.filename == name])
        lines = "".join(shown.format(chain=False)).splitlines()
        outputs = [new_output("error", ename=type(error).__name__, evalue=str(error), traceback=lines)]
    if printed.getvalue():
        outputs.insert(0, new_output("stream", name="stdout", text=printed.getvalue()))
    return outputs


class GradeApart(Execute):
    """Runs the student's cells in a kernel, and the tests apart from it."""

    closed_book = List(Unicode(), help="Assignments that are solved without importing rlcourse.").tag(config=True)
    call_seconds = Float(5, help="Seconds of processor time for a call of a student's function.").tag(config=True)

    def preprocess_cell(self, cell, resources, index):
        return (cell, resources) if is_test(cell) else super().preprocess_cell(cell, resources, index)

    def preprocess(self, nb, resources, km=None):
        cells = [c.source for c in nb.cells if c.cell_type == "code" and (not is_locked(c) or _is_setup(c))]
        closed = resources["nbgrader"]["assignment"] in self.closed_book
        submission = Submission(cells, resources["metadata"]["path"], closed, self.timeout, self.call_seconds)
        try:
            submission.launch()  # it gets ready while the kernel runs
            try:
                super().preprocess(nb, resources, km)
            except (DeadKernelError, CellTimeoutError) as error:
                self.log.warning("The kernel ran no further, which the tests do not need: %s", error)
            names = submission.stand_ins()
            for cell in filter(is_test, nb.cells):
                cell.outputs = run_test(cell, names)
        finally:
            submission.stop()
        return nb, resources


def _is_setup(cell) -> bool:
    return cell.metadata.nbgrader.grade_id == "setup"


class RestoreCells(NbGraderPreprocessor):
    """Gives each cell of an assignment its kind and points back, and the text too unless the cell is an answer.

    Cells that were deleted come back at the end, so that each is graded; cells that do not belong to the assignment
    stay, as the student's own. nbgrader's OverwriteCells stumbles over some changes of the metadata.
    """

    def preprocess(self, nb, resources):
        about = resources["nbgrader"]
        with Gradebook(about["db_url"]) as gradebook:
            assigned = gradebook.find_notebook(about["notebook"], about["assignment"])
            points = {cell.name: cell.max_score for cell in assigned.grade_cells}
            answers = {cell.name for cell in assigned.solution_cells}
            handed_out = {cell.name: _handed_out(cell, points, answers) for cell in assigned.source_cells}
        seen = set()
        for cell in reversed(nb.cells):  # of copies the last one counts, as it does for nbgrader
            data = cell.metadata.pop("nbgrader", None)
            name = data.get("grade_id") if isinstance(data, dict) else None
            if name in handed_out and name not in seen:
                seen.add(name)
                kept = ["id"] + ["source"] * (name in answers) + ["attachments"] * (cell.cell_type == "markdown")
                restored = handed_out[name] | {key: cell[key] for key in kept if key in cell}
                cell.clear()
                cell.update(restored)
        nb.cells += [cell for name, cell in handed_out.items() if name in points and name not in seen]
        return nb, resources


def _handed_out(cell, points: dict[str, float], answers: set[str]):
    data = dict(
        grade_id=cell.name, grade=cell.name in points, solution=cell.name in answers, locked=bool(cell.locked),
        task=False, schema_version=3, cell_type=cell.cell_type, checksum=cell.checksum,
    )  # fmt: skip
    if cell.name in points:
        data["points"] = points[cell.name]
    new = new_code_cell if cell.cell_type == "code" else new_markdown_cell
    return new(cell.source, metadata={"nbgrader": data})
