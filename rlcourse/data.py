"""Human-rated sentences and the openings that PPO completes.

The sentences and their raw ratings are the supplementary data of C. J. Hutto and E. Gilbert, "VADER: A Parsimonious
Rule-based Model for Sentiment Analysis of Social Media Text" (ICWSM 2014), as shipped (MIT licence) in the source
distribution of the PyPI package vaderSentiment 3.3.2. `python -m rlcourse.data` fetches it once; nothing else here
opens a connection.
"""

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).parent / "assets"
PACKAGE, SHA256 = "vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
FILES = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "tweets": "tweets",
}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class HumanRatings:
    """A table of rated sentences; the four columns have one entry per sentence.

    text: the sentence. ratings: every rater's score, from -4 (very negative) to 4. source: one of `FILES`.
    split: "train", "validation" or "test". `mean` and `std` (population) are computed from the ratings, [N].
    """

    text: list[str]
    ratings: list[list[int]]
    source: list[str]
    split: list[str]

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def mean(self) -> np.ndarray:
        return np.array([np.mean(scores) for scores in self.ratings])

    @cached_property
    def std(self) -> np.ndarray:
        return np.array([np.std(scores) for scores in self.ratings])


def load_human_ratings(source: str = "movies", split: str = "all") -> HumanRatings:
    """Sentences with the raw ratings of at least 15 people each (Hutto and Gilbert 2014).

    source: "movies" (10,605 sentences), "products" (3,708), "editorials" (5,190), "tweets" (4,200) or "all".
    split: "train", "validation", "test" or "all". The split is fixed: of the movies 800 sentences are "test" and 400
    "validation", of the other sources the same share, chosen by a hash of the text; repeated sentences fall together.

    Fetches the data with pip on first use and keeps it in the user's cache folder (`RLCOURSE_CACHE` moves it).
    Raises ValueError for an unknown name, RuntimeError with what to do when the data cannot be fetched.
    """
    if source not in (*FILES, "all"):
        raise ValueError(f"source must be one of {[*FILES, 'all']}, got {source!r}")
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split must be one of {[*SPLITS, 'all']}, got {split!r}")
    columns: tuple[list, list, list, list] = ([], [], [], [])
    archive = _open_archive()
    for name in FILES if source == "all" else [source]:
        texts, ratings = _read_source(archive, FILES[name])
        for text, scores, part in zip(texts, ratings, _split(texts)):
            if split in (part, "all"):
                for column, entry in zip(columns, (text, scores, name, part)):
                    column.append(entry)
    return HumanRatings(*columns)


def load_prompts(split: str = "train") -> list[str]:
    """Openings of film reviews, written for this package and without a judgement: "train" or "held_out", disjoint."""
    prompts = json.loads((ASSETS / "prompts.json").read_text(encoding="utf-8"))
    if split not in prompts:
        raise ValueError(f"split must be one of {list(prompts)}, got {split!r}")
    return prompts[split]


def load_study(path: str | Path) -> tuple[str, list[dict]]:
    """A stored study: what its first lines say of date, versions and settings, and its rows with numbers as floats."""
    about, table = [], Path(path).read_bytes().decode("utf-8")
    while table.startswith("# "):
        line, table = table.split("\n", 1)
        about.append(line.removeprefix("# "))
    rows = csv.DictReader(io.StringIO(table, newline=""))  # texts may hold line ends of any kind
    return "\n".join(about), [{key: _number(cell) for key, cell in row.items()} for row in rows]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def text_key(text: str) -> str:
    """What two spellings of one sentence share: its letters and digits, in lower case."""
    return re.sub(r"\W+", "", text.lower()) or text


def _split(texts: list[str]) -> list[str]:
    """Rank the sentences by a hash of their text: the first 800 of 10,605 are test, the next 400 validation."""
    digests = [hashlib.sha256(text_key(text).encode()).hexdigest() for text in texts]
    in_order = sorted(digests)
    first, second = 800 * len(texts) // 10605, 1200 * len(texts) // 10605
    # compare digests, not ranks: equal sentences have equal digests and so never part
    return ["test" if d < in_order[first] else "validation" if d < in_order[second] else "train" for d in digests]


def _read_source(archive: tarfile.TarFile, name: str) -> tuple[list[str], list[list[int]]]:
    """Texts and ratings of one source; the two files are joined by sentence id because their order differs."""

    def rows(kind: str) -> list[list[str]]:
        raw = archive.extractfile(f"hutto_ICWSM_2014/{name}_{kind}.txt").read()
        return [line.split("\t") for line in raw.decode("utf-8-sig").split("\r\n") if line]

    ratings = {row[0]: json.loads(row[3]) for row in rows("anonDataRatings")}
    sentences = [(row[0], row[2].strip()) for row in rows("GroundTruth")]
    return [text for _, text in sentences], [ratings[key] for key, _ in sentences]


def _cache_file() -> Path:
    folder = Path(os.environ.get("RLCOURSE_CACHE") or Path.home() / ".cache" / "rlcourse")
    return folder / f"{PACKAGE.replace('==', '-')}.tar.gz"


def _open_archive() -> tarfile.TarFile:
    outer = tarfile.open(fileobj=io.BytesIO(_fetch()))
    inner = outer.extractfile(f"{PACKAGE.replace('==', '-')}/additional_resources/hutto_ICWSM_2014.tar.gz")
    return tarfile.open(fileobj=inner)


def _fetch() -> bytes:
    """The source distribution's bytes, from the cache or else through pip; the checksum is verified every time."""
    path = _cache_file()
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", PACKAGE]
            done = subprocess.run([*command, "-d", folder], capture_output=True, text=True)
            downloaded = Path(folder) / path.name
            if done.returncode or not downloaded.exists():
                raise RuntimeError(
                    f"The human ratings are not in {path.parent} and pip could not fetch them. Connect once and run "
                    f"`python -m rlcourse.data`, or copy {path.name} into that folder. pip said: {done.stderr[-400:]}"
                )
            if (found := hashlib.sha256(downloaded.read_bytes()).hexdigest()) != SHA256:
                raise RuntimeError(f"checksum of {path.name} is {found}, expected {SHA256}; nothing was kept")
            os.replace(downloaded, path)  # one step, so that an interrupted download leaves nothing half-written
    return path.read_bytes()


if __name__ == "__main__":
    print(f"{len(load_human_ratings('all')):,} rated sentences in {_cache_file().parent}")
