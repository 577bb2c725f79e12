"""What teachers hand out and read: symbols, shapes and terms are those of the package and of the lessons."""

import json
import re
import warnings
from pathlib import Path

import pytest

import rlcourse
from rlcourse import envs

ROOT = Path(__file__).parents[1]
TEACHING = ROOT / "notebooks" / "teaching"
HANDOUT = (TEACHING / "symbols.md").read_text(encoding="utf-8")
GUIDE = (TEACHING / "guide.md").read_text(encoding="utf-8")
LESSONS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
SECTIONS = {number: part for number, part in re.findall(r"^## (\d\d) · (.*?)(?=^## |\Z)", GUIDE, re.M | re.S)}


def cells(path: Path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def rows() -> list[list[str]]:
    """The rows of the hand-out's tables, without headings and rules."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in HANDOUT.splitlines() if line[:1] == "|"]
    return [row for row in found if row[0] not in ("symbol", "name") and not row[0].startswith("---")]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# -- the hand-out ----------------------------------------------------------------------------------------------------


def legend() -> list[tuple[list[str], str]]:
    """(variables, shape) of every line of the legend in the package's docstring, which is set in columns."""
    lines = rlcourse.__doc__.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.split() == ["symbol", "variable", "shape", "meaning"]]
    at = [lines[start].index(word) for word in ("variable", "shape", "meaning")]
    body = lines[start + 2 : lines.index("", start)]
    return [(line[at[0] : at[1]].strip().split(", "), line[at[1] : at[2]].strip()) for line in body]


def test_every_symbol_of_the_legend_is_on_the_handout_with_its_shape():
    shapes = {name: row[2] for row in rows() if len(row) == 5 for name in code(row[1])}
    assert len(legend()) >= 15
    for names, shape in legend():
        for name in names:
            assert shapes.get(name) == shape, f"{name}: {shapes.get(name)} on the hand-out, {shape} in the legend"


def test_names_on_the_handout_are_in_the_package():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rlcourse").glob("*.py"))
    defined = set(re.findall(r"(?:def|class) (\w+)", text))
    for row in rows():
        names = code(row[1] if len(row) == 5 else row[2])
        assert names, row
        for name in names:
            assert re.search(rf"\b{name}\b", text), f"{name} is nowhere in the package"
            if len(row) == 4:
                assert name in defined, f"{name} is no function of the package"
    for name in ("expected_return", "gradient", "regularised_return", "optimal_policy", "gradient_by_score"):
        assert hasattr(envs.TokenMDP, name)


def words() -> dict[str, set[str]]:
    """English term -> Chinese terms, from the *Words* at the end of the lessons."""
    found = {}
    for path in LESSONS.values():
        lists = [cell.split("**Words.**")[1] for cell in cells(path, "markdown") if "**Words.**" in cell]
        for item in " · ".join(lists).split(" · "):
            parts = item.split()
            at = next((i for i, part in enumerate(parts) if re.search("[\u4e00-\u9fff]", part)), len(parts))
            if 1 < at < len(parts) and parts[at - 1] in ("KL", "F1", "F", "Q", "n"):  # "KL divergence KL 散度"
                at -= 1
            for english in " ".join(parts[:at]).split(", ") if at < len(parts) else ():
                found.setdefault(english, set()).add(" ".join(parts[at:]))
    return found


def test_chinese_terms_agree_with_the_lessons():
    lessons, compared = words(), 0
    assert lessons["policy"] == {"策略"} and lessons["KL divergence"] == {"KL 散度"} and len(lessons) > 150
    for row in rows():
        english = re.sub(r" \(.*\)$", "", (row[3] if len(row) == 5 else row[0]).split(":")[0]).split(", ")
        chinese = row[-1].split("，")
        assert len(english) == len(chinese), row
        for one, other in zip(english, chinese):
            if one in lessons:
                compared += 1
                assert other in lessons[one], f"{one}: {other} on the hand-out, {lessons[one]} in the lessons"
    assert compared >= 30


def test_handout_fits_a_page(monkeypatch):
    assert len(HANDOUT.splitlines()) <= 60
    monkeypatch.syspath_prepend(TEACHING)
    import print_symbols

    assert print_symbols.SIZE >= 8
    fonts = print_symbols.chinese_fonts()
    if not fonts:
        pytest.skip("no font with Chinese characters: the sheet cannot be set")
    with print_symbols.plt.rc_context({"font.family": [fonts[0], "DejaVu Sans"]}), warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is in none of the fonts
        sheet = print_symbols.draw(HANDOUT)
        boxes = [text.get_window_extent(sheet.pen) for text in sheet.figure.texts]
    assert sheet.y >= print_symbols.MARGIN
    assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= print_symbols.WIDTH
    assert min(text.get_fontsize() for text in sheet.figure.texts) >= 8


# -- the guide -------------------------------------------------------------------------------------------------------


def test_the_guide_has_every_lesson():
    assert set(LESSONS) <= set(SECTIONS)
    for number, path in LESSONS.items():
        if number != "13":
            title = cells(path, "markdown")[0].splitlines()[0]
            assert title == f"# {number} · {SECTIONS[number].splitlines()[0]}"


@pytest.mark.parametrize("number", [number for number in LESSONS if number != "13"])
def test_minutes_are_those_of_the_lesson(number):
    head = next(line for line in cells(LESSONS[number], "markdown")[0].splitlines() if line.startswith("**Time.**"))
    read = re.search(r"About (\d+) minutes to read", head)[1]
    solve = re.search(r"(\d+) (?:to solve|for the exercises)", head)[1]
    assert f"**Reading {read} minutes, exercises {solve} minutes**" in SECTIONS[number]


@pytest.mark.parametrize("number", LESSONS)
def test_demonstrations_name_code_that_is_in_the_lesson(number):
    live = SECTIONS[number].split("**Live.**")[1]
    source = "\n".join(cells(LESSONS[number], "code"))
    for old in re.findall(r"[Cc]hange `([^`]+)`|replace `([^`]+)`|[Rr]eplace `([^`]+)`", live):
        assert max(old) in source, max(old)


@pytest.mark.parametrize("number", [number for number in LESSONS if number != "13"])
def test_exercises_and_questions_that_are_named_exist(number):
    pages = "\n".join("\n".join(cells(path, "markdown")) for path in LESSONS.values())
    for kind, which in re.findall(r"(exercise|question) (\d+\.\d)", SECTIONS[number]):
        assert f"### {kind.capitalize()} {which}" in pages, f"{kind} {which}"


@pytest.mark.parametrize("name", ["README.md", "guide.md", "symbols.md"])
def test_links_lead_somewhere(name):
    text = (TEACHING / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            assert (TEACHING / target.split("#")[0]).exists(), target
    assert "<" not in re.sub(r"`[^`]*`|```.*?```", "", text, flags=re.S).replace("<details>", "")
