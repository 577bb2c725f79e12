"""What stands around the package: the ways to install it, the wheel, the notebooks as they are stored, the README."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted((ROOT / "rlcourse").rglob("*.py"))


# -- installing -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(lines) -> dict[str, SpecifierSet]:
    found = [Requirement(line) for line in lines]
    assert all(r.url is None and r.marker is None and not r.extras for r in found)
    return {r.name.lower(): r.specifier for r in found}


def test_conda_and_pip_ask_for_the_same(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip_part = environment["dependencies"]
    assert pip_part == {"pip": ["-e ."]} and environment["name"] == "rlcourse"
    assert environment["channels"] == ["conda-forge"]
    conda = requirements(conda)
    assert conda.pop("python") == SpecifierSet(project["requires-python"])
    assert conda.pop("pip") == SpecifierSet()
    pip_names = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
    assert {pip_names.get(name, name): spec for name, spec in conda.items()} == requirements(project["dependencies"])


def test_python_versions_agree(project):
    wanted = SpecifierSet(project["requires-python"])
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in wanted
    lowest = Version(re.search(r">=(\d+\.\d+)", project["requires-python"])[1])
    assert f"Python {lowest} or later" in (ROOT / "README.md").read_text(encoding="utf-8")


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    for requirement in found:
        (spec,) = requirement.specifier
        assert spec.operator == "==" and "*" not in spec.version, f"{requirement} pins no version"
    return {r.name.lower(): Version(next(iter(r.specifier)).version) for r in found}


def test_constraints_pin_versions_that_pyproject_allows(project):
    pinned = pins()
    assert pinned["torch"] == Version("2.13.0")
    extras = project["optional-dependencies"]
    asked = requirements(project["dependencies"] + extras["test"] + extras["teach"])
    assert not set(asked) - set(pinned), "not pinned"
    for name, spec in asked.items():
        assert pinned[name] in spec, f"{name}: {pinned[name]} is not {spec}"


def test_every_import_is_declared(project):
    """Each third-party package that rlcourse imports is asked for; IPython comes with JupyterLab."""
    declared = {name.replace("-", "_") for name in requirements(project["dependencies"])} | {"ipython"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {name.split(".")[0].lower() for name in names} - set(sys.stdlib_module_names) - {"rlcourse"}
            assert tops <= declared, f"{path.name} imports {tops - declared}"


# -- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources, so that the checkout stays clean and no stale `build` folder gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "rlcourse", source / "rlcourse", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--quiet", "-w", str(out)]
    command.append("--disable-pip-version-check")
    try:
        if Version(importlib.metadata.version("setuptools")) >= Version("77"):
            command.append("--no-build-isolation")
    except importlib.metadata.PackageNotFoundError:
        pass
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.glob("rlcourse-*.whl")
    return path


def test_wheel_holds_the_package_and_its_assets_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    files = [p for p in (ROOT / "rlcourse").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert names == {p.relative_to(ROOT).as_posix() for p in files}
    assert {"rlcourse/assets/tiny/model.safetensors", "rlcourse/assets/prompts.json"} <= names
    assert wheel.stat().st_size < 12e6


def test_wheel_is_described(wheel, project):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
        assert [n for n in archive.namelist() if n.endswith("LICENSE")]
    assert "Name: rlcourse\n" in metadata and "License-Expression: MIT\n" in metadata
    listed = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, flags=re.M)
    assert requirements(listed) == requirements(project["dependencies"])


def test_bundled_model_loads_from_the_wheel(wheel, tmp_path):
    """From another folder, with the unpacked wheel in front of the checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path / "site")!r})
import rlcourse
from rlcourse.data import load_prompts
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
policy = GPT2Policy.from_pretrained("tiny", device="cpu")
texts = response_texts(policy, sample_responses(policy, load_prompts()[:2], 3))
print(rlcourse.__file__, policy.lm.name_or_path, len(texts), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    package, model, count = done.stdout.split("\n")[:3]
    assert package.startswith(str(tmp_path)) and model.startswith(str(tmp_path)) and count == "2"


# -- notebooks as they are stored -----------------------------------------------------------------------------------


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in load(path)["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def source(cell: dict) -> str:
    return "".join(cell["source"])


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix())


def test_there_are_notebooks():
    assert NOTEBOOKS
    lessons = {p.name for p in NOTEBOOKS if p.parent.name == "notebooks"}
    assert all(p.name in lessons for p in NOTEBOOKS if p.parent.name == "solutions"), "solutions without a lesson"


@every_notebook
def test_kernel_is_python3(path):
    assert load(path)["metadata"]["kernelspec"]["name"] == "python3" and load(path)["nbformat"] == 4


@every_notebook
def test_was_run_once_from_top_to_bottom(path):
    """nbval passes a notebook that was never run, so this is on us."""
    cells = code_cells(path)
    assert cells and all(source(cell).strip() for cell in cells), "an empty code cell"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell["outputs"]:
            assert output.get("execution_count", cell["execution_count"]) == cell["execution_count"]


@every_notebook
def test_outputs_are_stored(path):
    """A cell that plainly prints, shows or draws has an output; so has a good part of all cells."""
    cells = code_cells(path)
    for cell in cells:
        last = source(cell).rstrip().splitlines()[-1]
        if re.match(r"(print|show|plt\.show|check_\w+|checks\.check_\w+)\(", last):
            assert cell["outputs"], f"no output stored for\n{source(cell)}"
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) / 3


@every_notebook
def test_no_errors_are_stored(path):
    for cell in code_cells(path):
        errors = [output["ename"] for output in cell["outputs"] if output["output_type"] == "error"]
        assert not errors or "raises-exception" in tags(cell), f"{errors} in\n{source(cell)}"
        warned = [o for o in cell["outputs"] if o.get("name") == "stderr" and "Warning" in "".join(o["text"])]
        assert not warned, f"a warning under\n{source(cell)}"


@every_notebook
def test_no_machine_paths(path):
    text = path.read_text(encoding="utf-8")
    folders = ["/" + name + "/" for name in ("home", "root", "Users", "work", "tmp", "opt", "usr")]
    folders += ["C:" + "\\\\", "site-" + "packages", "ipykernel" + "_"]
    texts = re.sub(r'"image/(png|svg\+xml|jpeg)": (\[[^\]]*\]|"[^"]*")', "", text)  # base64 may hold anything
    found = [f for f in folders if re.search(r"(?<![\w.])" + re.escape(f) if f[0] == "/" else re.escape(f), texts)]
    assert not found


@every_notebook
def test_cells_are_short_and_none_is_skipped(path):
    for cell in load(path)["cells"]:
        if cell["cell_type"] == "code":
            assert len(source(cell).splitlines()) <= 25, f"more than 25 lines:\n{source(cell)}"
        assert not {"nbval-skip", "skip"} & set(tags(cell))


@every_notebook
def test_what_is_not_compared_is_claimed(path):
    """An output that nbval ignores is followed by a cell whose output it compares, before the next ignored one."""
    cells = code_cells(path)
    for i, cell in enumerate(cells):
        if {"nbval-ignore-output", "nbval-ignore"} & set(tags(cell)):
            later = next((c for c in cells[i + 1 :] if "nbval-ignore-output" not in tags(c)), None)
            assert later is not None, f"nothing is compared after\n{source(cell)}"
            assert later["outputs"] or "assert" in source(later), f"no claim follows\n{source(cell)}"


@every_notebook
def test_what_is_not_compared_is_listed_in_the_readme(path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for number, cell in enumerate(code_cells(path), start=1):
        if {"nbval-ignore-output", "nbval-ignore"} & set(tags(cell)):
            assert f"{path.stem[:2]}, cell [{number}]" in readme


@every_notebook
def test_no_output_that_cannot_be_compared_or_seen_on_the_web(path):
    for cell in code_cells(path):
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        assert not {"application/vnd.jupyter.widget-view+json", "image/svg+xml", "application/javascript"} & kinds


@every_notebook
def test_links_inside_the_repository_lead_somewhere(path):
    for cell in load(path)["cells"]:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)#\s]+)", source(cell)):
                assert target.startswith(("http", "mailto:")) or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.parent.name == "solutions"], ids=lambda p: p.stem)
def test_solutions_solve_everything(path):
    text = json.dumps([cell["outputs"] for cell in code_cells(path)])
    assert ": right" in text and "not attempted" not in text
    assert not any("raise NotImplementedError" in source(cell) for cell in code_cells(path))


# -- README, package ------------------------------------------------------------------------------------------------


def test_readme_names_the_commands_and_every_lesson():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("lab", "test", "notebooks", "bench"):
        assert f"make {target}" in readme and re.search(rf"^{target}:", makefile, flags=re.M)
    assert "make lab" in readme[:1500], "the first screen says how to begin"
    assert "pip install -c constraints.txt -e ." in readme and "conda env create -f environment.yml" in readme
    for path in NOTEBOOKS:
        if path.parent.name == "notebooks":
            assert f"(notebooks/{path.name})" in readme
    for target in re.findall(r"\]\(([^)#\s]+)", readme):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_public_things_have_docstrings_and_functions_fit_a_screen(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.name} does not say what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node.name != "main":
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def test_legend_in_the_package_names_the_columns_of_a_rollout():
    import rlcourse
    from rlcourse.rollout import Rollout

    for name in Rollout.__dataclass_fields__:
        assert f" {name} " in rlcourse.__doc__, f"{name} is not in the legend"
