"""What the studies share: writing a CSV into the notebooks' folder whose first lines say how it was made."""

import csv
import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

FOLDER = Path(__file__).parents[2] / "notebooks"


def write(name: str, rows: list[dict], script: str, settings, packages: tuple[str, ...] = ()) -> None:
    """notebooks/`name`.csv: lines with date, commit, versions and settings, then the rows, floats to five digits."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", *packages))
    about = [
        f"tests/bench/{Path(script).name}, {datetime.date.today()}, commit {commit}",
        f"python {platform.python_version()}, {versions}, threads {torch.get_num_threads()}",
        str(settings),
    ]
    with open(FOLDER / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in about)
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
