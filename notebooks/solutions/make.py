"""`make notebooks`: execute every lesson in place, then make its solutions from the lesson and `answers/`.

A solutions notebook holds the lesson's exercises, each stub `def my_…` replaced by the answer of that name. In
`answers/` the comment above an answer becomes the text above it.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
LESSONS = FOLDER.parent
SETUP = "import torch\n\nfrom rlcourse import checks"  # what exercises and answers may use


def execute(path: Path, **environment: str) -> None:
    """Run a notebook from a fresh kernel in its own folder and store the outputs, with counts 1..n and no timings."""
    notebook = nbformat.read(path, as_version=4)
    os.environ.update(environment)
    start = time.perf_counter()
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True)
    client.execute(cwd=str(path.parent))
    print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def answers() -> dict[str, tuple[str, str]]:
    """name -> (explanation, source) of every answer in answers/."""
    found = {}
    for path in sorted((FOLDER / "answers").glob("n*.py")):
        for block in path.read_text(encoding="utf-8").split("\n\n\n")[1:]:
            comment, name = re.match(r"((?:#.*\n)*)def (my_\w+)", block).groups()
            found[name] = (re.sub(r"^# ?", "", comment, flags=re.M).strip(), block[len(comment) :].rstrip())
    return found


def solutions(lesson: Path, bank: dict[str, tuple[str, str]]) -> Path | None:
    """Write the solutions of one lesson; None when it has no exercises."""
    cells = nbformat.read(lesson, as_version=4).cells
    title = next(c.source.splitlines()[0] for c in cells if c.cell_type == "markdown")
    notebook = nbformat.v4.new_notebook()
    text = f"{title}: solutions\n\nThe exercises of [{lesson.stem}](../{lesson.name}) with worked answers."
    notebook.cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(SETUP)]
    inside = False
    for cell in cells:
        if cell.cell_type == "markdown":
            inside = cell.source.startswith("### Exercise")
        if not inside:
            continue
        stub = re.search(r"^def (my_\w+)", cell.source, flags=re.M) if cell.cell_type == "code" else None
        if stub:
            explanation, source = bank[stub[1]]
            notebook.cells.append(nbformat.v4.new_markdown_cell(f"**Answer.** {explanation}"))
            cell = nbformat.v4.new_code_cell(source)
        cell.source = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.S).rstrip()  # the hints
        notebook.cells.append(cell)
    if len(notebook.cells) == 2:
        return None
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    path = FOLDER / lesson.name
    nbformat.write(notebook, path)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", path], check=True)
    return path


if __name__ == "__main__":
    chosen = sys.argv[1:]
    for lesson in sorted(LESSONS.glob("[0-9]*.ipynb")):
        if not chosen or lesson.stem[:2] in chosen:
            subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", lesson], check=True)
            execute(lesson, RLCOURSE_STRICT="0")
            if path := solutions(lesson, answers()):
                execute(path, RLCOURSE_STRICT="1")
