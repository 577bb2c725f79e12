"""The course as a web site that needs no network: `make site` writes it to build/site from the stored outputs.

The sources are the files of the repository itself, so every relative link in a notebook means the same on the site:
a notebook or a .md file is a page, a .py file is a page with numbered lines, any other file is a download.
"""

import ast
import importlib.metadata
import itertools
import shutil
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Parser
from sphinx import addnodes

ROOT = Path(__file__).parents[1]

project = "rlcourse"
language = "en"
suppress_warnings = ["myst.header"]  # solutions quote the lessons' "### Exercise" under their own "#"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = [
    "README.md",
    "site/*.md",
    "notebooks/*.ipynb",
    "notebooks/solutions/*.ipynb",
    "notebooks/teaching/*.md",
]
include_patterns += ["rlcourse/**.py", "rlcourse/assets/*/README.md"]
include_patterns += ["tests/**.py", "notebooks/**.py"]
exclude_patterns = [".*", "build", "**/.ipynb_checkpoints", "**/__pycache__"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # links and formulas in outputs too
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "rlcourse"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
# One file of MathJax 3.2.2 (Apache licence 2.0) that needs no other; MathJax 4 fetches glyphs from a network.
(MATHJAX,) = [f for f in importlib.metadata.files("sphinx-mathjax-offline") if f.name == "tex-svg-full.js"]
mathjax_path = MATHJAX.name

CONTENTS = """
```{toctree}
:hidden:
:caption: Lessons
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: More
:glob:

site/solutions
site/sources
```
"""
TEACHING = """
```{toctree}
:hidden:
:caption: Teaching

%s
```
"""


class PythonPage(Parser):
    """A .py file as a page; `ppo.py#L65` in a link leads to line 65."""

    supported = ("python",)

    def parse(self, inputstring, document):
        env = document.settings.env
        name = env.doc2path(env.docname, base=False)
        slugs = {f"L{n}": (1, f"L-{n}", f"line {n}") for n in range(1, inputstring.count("\n") + 2)}
        env.metadata[env.docname] |= {"myst_slugs": slugs, "orphan": True}  # site/sources links to it
        code = nodes.literal_block(inputstring, inputstring, language="python", linenos=True)
        code["highlight_args"] = {"linespans": "L"}  # an id for each line
        document += nodes.section("", nodes.title("", name.as_posix()), code, ids=[nodes.make_id(str(name))])


def list_of_sources(env) -> str:
    """Every .py file with the first line of its docstring, by folder."""
    files = [Path(env.doc2path(name, base=False)) for name in env.found_docs]
    files = sorted((file.parts[0] != "rlcourse", file.parent, file) for file in files if file.suffix == ".py")
    lines = []
    for folder, names in itertools.groupby(files, key=lambda file: file[1]):
        lines.append(f"\n## {folder.as_posix()}\n")
        for *_, file in names:
            says = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
            lines.append(f"- [`{file.name}`](../{file.as_posix()}) {says.partition(chr(10))[0]}")
    return "\n".join(lines)


def add_contents(app, docname, source):
    """The README is the first page; what only a site needs is added here."""
    if docname in (root_doc, "site/sources"):
        app.env.note_reread()  # a new file changes these pages
    if docname == root_doc:
        guides = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("notebooks/teaching/*.md"))]
        source[0] += CONTENTS + (TEACHING % "\n".join(guides) if guides else "")
    if docname == "site/sources":
        source[0] += list_of_sources(app.env)


def mend_links(app, doctree):
    """A link to a folder leads to the page that lists its files; one to a page that is not on the site becomes text."""
    for node in list(doctree.findall(addnodes.pending_xref)):
        folder = (ROOT / node["refdoc"]).parent / node["reftarget"]
        if node["refdomain"] is None and folder.is_dir():
            page = "site/solutions" if folder.resolve() == ROOT / "notebooks/solutions" else "site/sources"
            node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", page, None
        elif node["refdomain"] == "doc" and node["reftarget"] not in app.env.found_docs:
            node.replace_self(node.children)


def keep_displays_as_written(app, doctree):
    """Sphinx puts every display of several lines into a `split`, in which MathJax takes no `\\tag`."""
    for node in doctree.findall(nodes.math_block):
        if not node.get("no-wrap"):
            node["no-wrap"] = True
            node[:] = [nodes.Text(rf"\[{node.astext()}\]")]


def copy_rest(app, exception):
    if exception is None:
        shutil.copy(MATHJAX.locate(), Path(app.outdir, "_static"))
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app):
    app.add_source_suffix(".py", "python")
    app.add_source_parser(PythonPage)
    app.connect("source-read", add_contents)
    app.connect("doctree-read", mend_links)
    app.connect("doctree-read", keep_displays_as_written)
    app.connect("build-finished", copy_rest)
