"""Notebook 07 in JupyterLab in Chromium, as a learner opens it: it runs to the end, its figures and widgets appear."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

LESSONS = Path(__file__).parents[2] / "notebooks"
NAME = "07_ppo_on_gpt2.ipynb"
MINUTES = 30  # two cores need one or two when nothing else runs


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a copy of the notebooks, with settings of its own."""
    folder, own = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    for path in [LESSONS / NAME, *LESSONS.glob("*.csv")]:
        shutil.copy(path, folder)
    kinds = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    kinds += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    environment = os.environ | {kind: str(own / kind) for kind in kinds} | {"RLCOURSE_PROGRESS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(own / "log", "w") as log:
        server = subprocess.Popen(command, cwd=own, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, own / "log")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=60)


def wait_for(address, server, log):
    for _ in range(120):
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(1)
    pytest.fail(log.read_text()[-2000:])


READY = """() => {
    window.panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.isReady && panel.sessionContext?.isReady && panel.content.model.cells.length > 0;
}"""
CELLS = """() => panel.content.widgets.map((cell) => cell.model.toJSON())"""
DONE = """() => {
    const code = panel.content.widgets.map((cell) => cell.model.toJSON()).filter((cell) => cell.cell_type === "code");
    const failed = code.some((cell) => cell.outputs.some((output) => output.output_type === "error"));
    const idle = panel.sessionContext.session.kernel.status === "idle";
    return failed || (idle && code.every((cell) => cell.execution_count));
}"""


@pytest.fixture(scope="module")
def tab(chromium, lab):
    """The notebook after Run All, from a fresh kernel and with no output left from before."""
    tab = chromium.new_page(viewport={"width": 1300, "height": 900})
    tab.set_default_timeout(300_000)
    tab.goto(lab.format(NAME))
    tab.wait_for_function(READY)
    tab.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in tab.evaluate(CELLS))
    tab.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    tab.wait_for_function(DONE, timeout=MINUTES * 60_000, polling=1000)
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def cells(tab):
    return tab.evaluate(CELLS)


@pytest.fixture(scope="module")
def stored():
    return json.loads((LESSONS / NAME).read_text(encoding="utf-8"))["cells"]


def code(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def count(cell, kind):
    return sum(kind in output.get("data", {}) for output in cell.get("outputs", []))


def printed(cells):
    streams = [output for cell in code(cells) for output in cell["outputs"] if output.get("name") == "stdout"]
    return "".join("".join(output["text"]) for output in streams)


def test_every_cell_ran_and_none_failed(cells):
    assert [cell["execution_count"] for cell in code(cells)] == list(range(1, len(code(cells)) + 1))
    assert not [o["evalue"] for cell in code(cells) for o in cell["outputs"] if o["output_type"] == "error"]


def test_the_figures_are_those_that_are_stored(cells, stored):
    figures = [count(cell, "image/png") for cell in code(cells)]
    assert figures == [count(cell, "image/png") for cell in code(stored)] and sum(figures)


def test_every_claim_holds(cells, stored):
    claims = re.findall(r"^.*: yes$", printed(stored), flags=re.M)
    assert claims and re.findall(r"^.*: (?:yes|no|NO)$", printed(cells), flags=re.M) == claims


def show(tab, i):
    """Scroll to cell i and return it: only what is near the screen is in the page."""
    tab.evaluate(f"panel.content.scrollToItem({i}, 'start')")
    return tab.locator(f".jp-Notebook [data-windowed-list-index='{i}']")


def test_figures_appear(tab, cells):
    for i, cell in enumerate(cells):
        if count(cell, "image/png"):
            image = show(tab, i).locator("img").first
            image.wait_for()
            assert image.evaluate("(e) => e.decode().then(() => e.naturalWidth)") > 100


def test_progress_bars_appear_and_are_full(tab, cells):
    bars = [i for i, cell in enumerate(cells) if count(cell, "application/vnd.jupyter.widget-view+json")]
    assert bars
    for i in bars:
        bar = show(tab, i).locator(".widget-hprogress .progress-bar-success").first  # tqdm's colour for the end
        bar.wait_for()
        assert bar.evaluate("(e) => e.style.width") == "100%"


def test_hints_open_and_formulas_are_set(tab, cells):
    texts = ["".join(cell["source"]) for cell in cells]
    hint = show(tab, next(i for i, text in enumerate(texts) if "<details>" in text)).locator("details").first
    hint.locator("summary").click()
    assert hint.locator("p").first.is_visible()
    formulas = show(tab, next(i for i, text in enumerate(texts) if "$$" in text)).locator("mjx-container")
    formulas.first.wait_for()
    assert not formulas.locator("mjx-merror").count()
