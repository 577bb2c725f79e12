"""The human ratings, against the archive read a second way, and the openings."""

import collections
import csv
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlcourse import data
from rlcourse.data import HumanRatings, load_human_ratings, load_prompts, load_study, text_key

FILES = {
    "movies": ("movieReviewSnippets", 10605),
    "products": ("amazonReviewSnippets", 3708),
    "editorials": ("nytEditorialSnippets", 5190),
    "tweets": ("tweets", 4200),
}
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"


@pytest.fixture(scope="module")
def everything():
    return load_human_ratings("all")


@pytest.fixture(scope="module")
def archive(everything, tmp_path_factory):
    """The authors' files as {name: rows}, read without the package's reader."""
    folder = tmp_path_factory.mktemp("archive")
    cache = Path(os.environ.get("RLCOURSE_CACHE") or Path.home() / ".cache" / "rlcourse") / ARCHIVE
    with tarfile.open(cache) as outer:
        (inner,) = [m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz")]
        outer.extract(inner, folder, filter="data")
    with tarfile.open(folder / inner.name) as files:
        files.extractall(folder, filter="data")
    tables = {}
    for path in (path for name, _ in FILES.values() for path in folder.rglob(f"{name}_*.txt")):
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        tables[path.stem] = [line.rstrip("\r").split("\t") for line in raw.split("\n") if line.strip()]
    return tables


def key_of(text: str) -> str:
    """Letters and digits in lower case, written without a regular expression."""
    return "".join(c for c in text.lower() if c.isalnum() or c == "_") or text


# -- ratings --------------------------------------------------------------------------------------------------------


def test_sizes(everything):
    assert len(everything) == 23703 == sum(n for _, n in FILES.values())
    counts = collections.Counter(zip(everything.source, everything.split))
    assert counts["movies", "test"] == 800 and counts["movies", "validation"] == 400
    for source, (_, n) in FILES.items():
        table = load_human_ratings(source)
        assert len(table) == n and set(table.source) == {source}
        assert len(table.text) == len(table.ratings) == len(table.split) == n == len(table.mean) == len(table.std)
        assert counts[source, "test"] == pytest.approx(n * 800 / 10605, abs=5)  # the movies' share, but for repeats
        assert counts[source, "validation"] == pytest.approx(n * 400 / 10605, abs=5)


def test_ratings_are_what_people_gave(everything):
    assert min(map(len, everything.ratings)) >= 15
    numbers = {number for scores in everything.ratings for number in scores}
    assert numbers == set(range(-4, 5)) and {type(number) for number in numbers} == {int}
    assert all(text and text == text.strip() for text in everything.text)


def test_texts_and_means_are_the_published_ones(archive):
    for source, (name, _) in FILES.items():
        table, rows = load_human_ratings(source), archive[f"{name}_GroundTruth"]
        assert table.text == [row[2].strip() for row in rows]
        off = np.abs(table.mean - [float(row[1]) for row in rows]) > 1e-3
        # 199 tweets have another mean in GroundTruth than their ratings have, and than the ratings file itself says
        assert off.sum() == (199 if source == "tweets" else 0)


def test_means_and_deviations_are_those_published_beside_the_ratings(archive):
    for source, (name, _) in FILES.items():
        published = {row[0]: (float(row[1]), float(row[2])) for row in archive[f"{name}_anonDataRatings"]}
        table, ids = load_human_ratings(source), [row[0] for row in archive[f"{name}_GroundTruth"]]
        np.testing.assert_allclose(table.mean, [published[i][0] for i in ids], atol=1e-3)
        np.testing.assert_allclose(table.std, [published[i][1] for i in ids], atol=1e-3)


def test_ratings_are_joined_by_sentence_id_and_not_by_order(archive):
    """The products' two files differ in order at a few places: joined by order, those get someone else's ratings."""
    name, _ = FILES["products"]
    truth, ratings = archive[f"{name}_GroundTruth"], archive[f"{name}_anonDataRatings"]
    assert len(truth) == len(ratings)
    moved = [i for i, (a, b) in enumerate(zip(truth, ratings)) if a[0] != b[0]]
    assert len(moved) > 10  # so this test can fail
    by_id = {row[0]: json.loads(row[3]) for row in ratings}
    table = load_human_ratings("products")
    assert table.ratings == [by_id[row[0]] for row in truth]
    assert any(table.ratings[i] != json.loads(ratings[i][3]) for i in moved)


def test_mean_and_std_of_three_sentences():
    table = HumanRatings(["a", "b", "c"], [[1, 3], [-4, -4, -4], [0, 0, 0, 4]], ["movies"] * 3, ["train"] * 3)
    assert len(table) == 3
    assert table.mean.tolist() == [2, -4, 1] and table.std.tolist() == pytest.approx([1, 0, np.sqrt(3)])


# -- splits ---------------------------------------------------------------------------------------------------------


def test_splits_share_no_sentence(everything):
    parts = collections.defaultdict(set)
    for text, part in zip(everything.text, everything.split):
        parts[part].add(key_of(text))
    assert set(parts) == {"train", "validation", "test"}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not parts[a] & parts[b]


def test_repeated_sentences_never_part(everything):
    places = collections.defaultdict(set)
    for text, source, part in zip(everything.text, everything.source, everything.split):
        places[source, key_of(text)].add(part)
    assert len(everything) - len(places) > 200  # there are repeats
    assert all(len(parts) == 1 for parts in places.values())


def test_split_argument_selects(everything):
    for source, whole in (("all", everything), ("movies", load_human_ratings())):
        parts = {name: load_human_ratings(source, name) for name in ("train", "validation", "test")}
        assert sum(map(len, parts.values())) == len(whole)
        for name, part in parts.items():
            assert set(part.split) == {name}
            assert part.text == [text for text, split in zip(whole.text, whole.split) if split == name]
            assert part.ratings == [scores for scores, split in zip(whole.ratings, whole.split) if split == name]


def test_split_is_the_same_in_every_run():
    """Not Python's own hash, which is another one in each process."""
    code = "from rlcourse.data import load_human_ratings as l; print([t[:40] for t in l('movies', 'test').text[:20]])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": s},
        ).stdout
        for s in ("1", "2")
    }
    assert runs == {f"{[text[:40] for text in load_human_ratings('movies', 'test').text[:20]]}\n"}


def test_splits_are_alike():
    """A split by hash is a fair draw: the means of the 800 and of the other movie snippets agree within 4 sigma."""
    rest, test = load_human_ratings("movies", "train").mean, load_human_ratings("movies", "test").mean
    assert abs(rest.mean() - test.mean()) < 4 * rest.std() * np.sqrt(1 / 800 + 1 / len(rest))


def test_text_key():
    assert text_key("It's GOOD, really!") == text_key("its good really") == "itsgoodreally"
    assert text_key("Café 2") == "café2" and text_key("深度 学习。") == "深度学习"
    assert text_key(":)") == ":)" != text_key(":(")  # what has no letters stays apart


# -- bad names, no network ------------------------------------------------------------------------------------------


def test_unknown_names():
    with pytest.raises(
        ValueError, match=re.escape("source must be one of") + ".*'movies'.*'tweets'.*'all'.*got 'films'"
    ):
        load_human_ratings("films")
    with pytest.raises(ValueError, match=r"split must be one of.*'train'.*'validation'.*'test'.*'all'.*got 'dev'"):
        load_human_ratings("movies", "dev")
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'held_out'\], got 'test'"):
        load_prompts("test")


@pytest.fixture
def fake_pip(monkeypatch, tmp_path):
    """An empty cache, and in place of pip something that leaves `content` in the folder it is given."""
    cache, calls = tmp_path / "cache", []
    monkeypatch.setenv("RLCOURSE_CACHE", str(cache))

    def install(content: bytes | None, code: int = 0):
        def run(command, **kwargs):
            calls.append(command)
            if content is not None:
                (Path(command[command.index("-d") + 1]) / ARCHIVE).write_bytes(content)
            return subprocess.CompletedProcess(command, code, stdout="", stderr="no route to host")

        monkeypatch.setattr(data.subprocess, "run", run)
        return cache, calls

    return install


@pytest.fixture(scope="module")
def genuine(everything):
    return (Path(os.environ.get("RLCOURSE_CACHE") or Path.home() / ".cache" / "rlcourse") / ARCHIVE).read_bytes()


@pytest.mark.parametrize("code", [0, 1])
def test_without_network_it_says_what_to_do(fake_pip, code):
    cache, calls = fake_pip(None, code)
    with pytest.raises(RuntimeError) as error:
        load_human_ratings("movies")
    words = (str(cache), "python -m rlcourse.data", ARCHIVE, "copy", "no route to host")
    assert all(word in str(error.value) for word in words)
    assert len(calls) == 1 and not [path for path in cache.rglob("*") if path.is_file()]


def test_wrong_checksum_keeps_nothing(fake_pip, genuine):
    cache, _ = fake_pip(genuine[:-1] + b"x")
    with pytest.raises(RuntimeError, match=f"checksum of {ARCHIVE} is [0-9a-f]{{64}}, expected [0-9a-f]{{64}}"):
        load_human_ratings("movies")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_fetched_once_then_read_from_the_cache(fake_pip, genuine, everything):
    cache, calls = fake_pip(genuine)
    assert load_human_ratings("tweets", "test").text == load_human_ratings("tweets", "test").text
    assert load_human_ratings("all").ratings == everything.ratings
    assert len(calls) == 1 and [path.name for path in cache.iterdir()] == [ARCHIVE]
    assert {"--no-deps", "--no-binary", "vaderSentiment==3.3.2"} <= set(calls[0])


def test_a_broken_file_in_the_cache_is_fetched_again(fake_pip, genuine):
    cache, calls = fake_pip(genuine)
    cache.mkdir()
    (cache / ARCHIVE).write_bytes(genuine[:1000])
    assert len(load_human_ratings("products")) == 3708
    assert len(calls) == 1 and (cache / ARCHIVE).read_bytes() == genuine


def test_a_copied_file_needs_no_network(fake_pip, genuine):
    cache, calls = fake_pip(None, 1)
    cache.mkdir()
    (cache / ARCHIVE).write_bytes(genuine)
    assert len(load_human_ratings("movies", "test")) == 800 and not calls


def test_module_says_what_it_has():
    done = subprocess.run([sys.executable, "-m", "rlcourse.data"], capture_output=True, text=True, check=True)
    assert "23,703 rated sentences" in done.stdout


# -- prompts --------------------------------------------------------------------------------------------------------


def test_prompts():
    train, held_out = load_prompts(), load_prompts("held_out")
    assert train == load_prompts("train") and (len(train), len(held_out)) == (160, 64)
    both = train + held_out
    assert len({key_of(prompt) for prompt in both}) == 224  # disjoint, and none twice
    for prompt in both:
        assert prompt and prompt == prompt.strip() and "  " not in prompt and prompt[-1].isalpha()


def test_prompts_are_about_neutral_in_tone():
    """A lexicon finds a word such as "hero" or "thriller" in some of them, but not in most, and nothing on average."""
    vader = SentimentIntensityAnalyzer()
    for split in ("train", "held_out"):
        tones = np.array([vader.polarity_scores(prompt)["compound"] for prompt in load_prompts(split)])
        assert np.mean(tones == 0) > 0.7 and abs(tones.mean()) < 0.1


def test_prompts_are_the_callers_own():
    load_prompts().clear()
    assert len(load_prompts()) == 160


# -- stored studies -------------------------------------------------------------------------------------------------


def test_study(tmp_path):
    path = tmp_path / "study.csv"
    path.write_text(
        '# 2026-01-02, commit abc\n# torch 2\nseed,name,score\n0,"a, b",0.5\n1,深度,-1e-3\n', encoding="utf-8"
    )
    about, rows = load_study(path)
    assert about == "2026-01-02, commit abc\ntorch 2"
    assert rows == [{"seed": 0.0, "name": "a, b", "score": 0.5}, {"seed": 1.0, "name": "深度", "score": -0.001}]
    assert load_study(str(path)) == (about, rows)


def test_study_with_texts_of_any_kind(tmp_path):
    """Sampled texts hold whatever a model says: line ends, quotes, and what looks like a remark."""
    path, texts = tmp_path / "study.csv", ["two\nlines", 'a "quoted", film', "# 1", "a\u2028b\x85c\x0b", " padded "]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("# made by hand\n")
        writer = csv.DictWriter(file, ["seed", "text"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"seed": i, "text": text} for i, text in enumerate(texts))
    about, rows = load_study(path)
    assert about == "made by hand" and [row["text"] for row in rows] == texts


def test_study_without_remarks_or_rows(tmp_path):
    path = tmp_path / "study.csv"
    path.write_text("seed,score\n")
    assert load_study(path) == ("", [])
