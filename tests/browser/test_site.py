"""The course as a web site: built without a warning, no link broken, and in Chromium every page is as it should be.

The build runs in `make test`, Chromium in `make browser`.
"""

import functools
import http.server
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
LESSONS = [f"notebooks/{path.stem}.html" for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
PHONE, DESKTOP = (360, 740), (1300, 900)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a fresh build in which a warning is an error."""
    for name in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(name, reason="the site extra is not installed: pip install -e .[site]")
    out, trees = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("doctrees")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "site", "-d", trees, ".", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


class Page(HTMLParser):
    """The links, what the page loads, and the ids of one page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = set(), set(), {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get("id"), attrs.get("name")}
        if tag == "a" and "href" in attrs:
            self.links.add(attrs["href"])
        elif tag in ("img", "script", "iframe", "source", "link"):
            self.loads |= {attrs.get("src"), attrs.get("href")} - {None}


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html") if "_static" not in path.parts
    }


def test_every_notebook_and_module_is_a_page(pages):
    sources = [*ROOT.glob("notebooks/[0-9]*.ipynb"), *ROOT.glob("notebooks/solutions/*.ipynb")]
    sources += [*ROOT.glob("notebooks/teaching/*.md"), *ROOT.glob("rlcourse/*.py"), *ROOT.glob("tests/*.py")]
    wanted = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in sources}
    assert not wanted - set(pages) and "index.html" in pages


def test_no_link_is_broken(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links | page.loads:
            if urlsplit(link).scheme in ("http", "https", "mailto", "data"):
                continue
            target = urlsplit(urljoin(f"/{name}", link))
            path, fragment = unquote(target.path).lstrip("/"), unquote(target.fragment)
            if not (site / path).is_file() or (path in pages and fragment not in pages[path].ids):
                broken.append(f"{name}: {link}")
    assert not broken, "\n".join(sorted(broken))


def test_pages_load_nothing_from_elsewhere(pages):
    assert not [
        (n, load) for n, page in pages.items() for load in page.loads if urlsplit(load).scheme not in ("", "data")
    ]


# -- in a browser ---------------------------------------------------------------------------------------------------

TYPESET = "() => !window.MathJax || MathJax.startup?.promise?.then(() => true)"
MEASURE = r"""() => {
    const all = (query) => [...document.querySelectorAll(query)];
    const text = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
    const words = [];
    while (text.nextNode())
        if (!text.currentNode.parentElement.closest("pre, code, script, style"))
            words.push(text.currentNode.data.trim());
    const isSet = (e) => e.querySelectorAll("mjx-container").length === 1 && e.querySelector("svg");
    const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
    const inside = (e) => !e.matches("article") && (scrolls(e) || inside(e.parentElement));
    const beyond = (e) => e.getBoundingClientRect().right > window.innerWidth + 1;
    return {
        formulas: all(".math").length,
        unset: all(".math").filter((e) => !isSet(e)).map((e) => e.textContent),
        errors: all("mjx-merror, [data-mml-node=merror], mjx-container [fill=red]").map((e) => e.textContent),
        dollars: words.filter((word) => /\$[\\{(|A-Za-z]|\\(frac|pi|theta)/.test(word)),
        images: all("img").filter((e) => !(e.complete && e.naturalWidth > 0)).map((e) => e.src),
        cut: all("article *:not(mjx-assistive-mml *)").filter((e) => beyond(e) && !inside(e))
            .map((e) => e.outerHTML.slice(0, 200)),
        wide: Math.max(...all("html, .content").map((e) => e.scrollWidth - e.clientWidth)),
    };
}"""


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def seen(chromium, address, pages):
    """name -> what Chromium finds on that page, on a phone and on a desk, what it asked for and complained about."""
    found = {}
    tab = chromium.new_page(device_scale_factor=1)
    tab.set_default_timeout(300_000)  # a busy machine is slow, not broken
    requests, complaints = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    tab.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    for name in sorted(pages):
        requests.clear(), complaints.clear()
        tab.set_viewport_size(dict(zip(("width", "height"), PHONE)))
        tab.goto(address + name, wait_until="load")
        tab.wait_for_function(TYPESET)
        found[name] = tab.evaluate(MEASURE)
        tab.set_viewport_size(dict(zip(("width", "height"), DESKTOP)))
        found[name]["wide on a desk"] = tab.evaluate(MEASURE)["wide"]
        found[name]["elsewhere"] = [url for url in requests if not url.startswith((address, "data:"))]
        found[name]["complaints"] = list(complaints)
    tab.close()
    return found


@pytest.mark.browser
@pytest.mark.parametrize("what", ["unset", "errors", "dollars", "images", "cut", "elsewhere", "complaints"])
def test_no_page_has(what, seen):
    """Formulas that were not set or are wrong, dollar signs left in the text, images that did not load, requests to
    another machine, errors on the console."""
    assert not {name: page[what] for name, page in seen.items() if page[what]}


@pytest.mark.browser
@pytest.mark.parametrize("what", ["wide", "wide on a desk"])
def test_no_page_is_wider_than_the_screen(what, seen):
    assert not {name: page[what] for name, page in seen.items() if page[what] > 1}


@pytest.mark.browser
@pytest.mark.parametrize("name", LESSONS)
def test_every_lesson_has_formulas(name, seen):
    assert seen[name]["formulas"] > 10


@pytest.mark.browser
def test_answers_of_a_quiz_open_and_show_their_formulas(chromium, address, seen):
    tab, tried = chromium.new_page(), 0
    tab.set_default_timeout(300_000)
    for name in LESSONS:
        tab.goto(address + name)
        tab.wait_for_function(TYPESET)
        answer = tab.locator("details:has(.math)").first
        if answer.count():
            formula = answer.locator("mjx-container").first
            assert not formula.is_visible(), name
            answer.locator("summary").click()
            assert formula.is_visible() and formula.bounding_box()["width"] > 5, name
            tried += 1
    tab.close()
    assert tried, "no lesson has a formula in a quiz or hint"
