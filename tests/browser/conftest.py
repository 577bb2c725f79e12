"""What both files share: Chromium, and a browser that reaches nothing but this machine."""

import shutil
from pathlib import Path

import pytest

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


@pytest.fixture(scope="session")
def chromium():
    """A running Chromium: the system's own, or the one that `playwright install chromium` fetched."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make browser")
    with playwright.sync_playwright() as p:
        names = ["chromium", "chromium-browser", "google-chrome"]
        program = next(filter(None, map(shutil.which, names)), p.chromium.executable_path)
        if not Path(program).exists():
            pytest.skip("no Chromium on this machine")
        browser = p.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()
