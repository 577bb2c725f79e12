"""What a long run writes down as it goes: history.csv, samples.jsonl and TensorBoard events."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Records:
    """Writes a row of numbers an iteration and, now and then, sample texts; what is there beyond `iteration` goes.

    folder: gets `history.csv` (a header, then a row an iteration), `samples.jsonl` (iteration, prompt, response, score)
    and the folder `tensorboard`. iteration: the last one that counts, 0 for a fresh start.
    A row is complete in the file when `add` returns. A line that a kill has cut in two is dropped when a run goes on.
    """

    def __init__(self, folder: str | Path, iteration: int = 0):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.history = _cut(folder / "history.csv", lambda line: int(line.split(b",")[0]), iteration)
        self.samples = _cut(folder / "samples.jsonl", lambda line: json.loads(line)["iteration"], iteration)
        self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)

    def add(self, row: dict[str, float]) -> None:
        """Write the numbers of iteration `row["iteration"]`, its first column; names are the same in every row."""
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        if not self.history.tell():
            table.writerow(row)
        table.writerow(row.values())  # floats as Python prints them: every bit is there
        _write(self.history, text.getvalue())
        for name, number in row.items():
            if name != "iteration":
                self.tensorboard.add_scalar(name, number, row["iteration"])

    def add_samples(self, iteration: int, prompts: list[str], responses: list[str], scores: list[float]) -> None:
        """Write texts with their scores."""
        rows = [dict(prompt=p, response=r, score=s) for p, r, s in zip(prompts, responses, scores, strict=True)]
        _write(self.samples, "".join(json.dumps(dict(iteration=iteration) | row) + "\n" for row in rows))
        text = "\n\n".join(f"{s:+.2f}  **{p}**{r}" for p, r, s in zip(prompts, responses, scores))
        self.tensorboard.add_text("samples", text, iteration)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        for file in (self.history, self.samples):
            os.fsync(file)
        self.tensorboard.flush()

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *_) -> None:
        for file in (self.history, self.samples, self.tensorboard):
            with contextlib.suppress(OSError):  # of a full disk `add` or `sync` has told already
                file.close()


def _cut(path: Path, iteration_of: Callable[[bytes], int], last: int):
    """Open a file to append to it, with only its whole lines up to iteration `last` (0: a header goes too)."""

    def counts(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and iteration_of(line) <= last
        except ValueError:
            return line.startswith(b"iteration,")  # the header

    lines = path.read_bytes().splitlines(keepends=True) if path.exists() and last else []
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_bytes(b"".join(filter(counts, lines)))
    os.replace(beside, path)
    return open(path, "ab")


def _write(file, text: str) -> None:
    file.write(text.encode())
    file.flush()
