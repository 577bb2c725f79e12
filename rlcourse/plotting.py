"""What the notebooks show: sources, progress bars, curves with seed bands, ratios, token heat maps, tables of text."""

import html
import inspect
import os
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Markdown
from tqdm.auto import tqdm


def show(function) -> Markdown:
    """The source of a function or class as it stands in the installed package, so that a page owns no copy of it."""
    source = inspect.getsource(function).rstrip()
    return Markdown(f"`{function.__module__}.{function.__qualname__}`\n\n```python\n{source}\n```")


def progress(iterable: Iterable, **kwargs):
    """A tqdm progress bar; the environment variable RLCOURSE_PROGRESS=0 turns it off."""
    return tqdm(iterable, disable=os.environ.get("RLCOURSE_PROGRESS") == "0", **kwargs)


def where_it_stands(rows: list[tuple]) -> Markdown:
    """A table of details: what it is, a link to the line of the package that does it, and the test that guards it.

    rows: (detail, function, fragment, test): the line is the first of the function's source that holds the fragment;
    test is "test_file.py::test_name". Raises ValueError when the line, or the test in a checkout, does not exist.
    """
    lines = ["| detail | line | test |", "|---|---|---|"]
    for detail, function, fragment, test in rows:
        function = inspect.unwrap(function)  # a decorator, like torch.no_grad, stands in another file
        source, first = inspect.getsourcelines(function)
        path = Path(inspect.getsourcefile(function))
        number = next((first + i for i, line in enumerate(source) if fragment in line), None)
        if number is None:
            raise ValueError(f"no line of {function.__qualname__} holds {fragment!r}")
        file, name = test.split("::")
        tests = path.parents[1] / "tests" / file
        if tests.parent.exists() and f"def {name}(" not in tests.read_text(encoding="utf-8"):
            raise ValueError(f"there is no test {test}")
        link = f"[{path.parent.name}/{path.name}, line {number}](../{path.parent.name}/{path.name}#L{number})"
        lines.append(f"| {detail} | {link} | [{test}](../tests/{file}) |")
    return Markdown("\n".join(lines))


def flow_diagram(boxes: dict[str, tuple[float, float]], arrows: list[tuple[str, str, str]], title: str):
    """Boxes {text: (x, y)} and labelled arrows (from, to, label) between them; the plane is 10 wide and 5 high."""
    figure, ax = plt.subplots(figsize=(11, 4.6), layout="constrained")
    style = dict(boxstyle="round,pad=0.5", facecolor="#eef3fb", edgecolor="tab:blue")
    patches = {t: ax.text(*xy, t, ha="center", va="center", fontsize=10, bbox=style) for t, xy in boxes.items()}
    ax.set(xlim=(0, 10), ylim=(0, 5), title=title)
    ax.axis("off")
    figure.canvas.draw()  # boxes have their size only once drawn
    for start, end, label in arrows:
        line = dict(arrowstyle="-|>", color="0.35", shrinkA=2, shrinkB=2)
        line |= dict(patchA=patches[start].get_bbox_patch(), patchB=patches[end].get_bbox_patch())
        ax.annotate("", boxes[end], boxes[start], arrowprops=line)
        x, y = ((a + b) / 2 for a, b in zip(boxes[start], boxes[end]))
        ax.text(x, y, label, ha="center", va="center", fontsize=8.5, backgroundcolor="white", family="monospace")
    return figure


def seed_band(ax, runs, label: str | None = None, **kwargs) -> None:
    """Draw the mean over runs as a line and their range (smallest to largest) as a band.

    runs: [seeds, steps] array. Keyword arguments such as `color` go to the line.
    """
    runs = np.atleast_2d(np.asarray(runs, dtype=float))
    steps = np.arange(1, runs.shape[1] + 1)
    (line,) = ax.plot(steps, runs.mean(0), label=label, **kwargs)
    if len(runs) > 1:
        ax.fill_between(steps, runs.min(0), runs.max(0), color=line.get_color(), alpha=0.2, linewidth=0)


def learning_curves(histories: dict[str, list[dict]] | list[dict], names: dict[str, str], columns: int = 3):
    """One small plot for each of `names` {key: title}; `histories` is a run (a list of dicts) or {label: run}."""
    labelled = histories if isinstance(histories, dict) else {None: histories}
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 2.3 * rows), layout="constrained", squeeze=False)
    for ax, (key, title) in zip(axes.flat, names.items()):
        for label, history in labelled.items():
            seed_band(ax, [step[key] for step in history], label=label)
        ax.set(title=title, xlabel="iteration")
        ax.grid(alpha=0.3)
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    if None not in labelled:
        axes.flat[0].legend(frameon=False)
    return figure


def before_after(before, after, title: str, label: str = "score"):
    """Two histograms over the same bins with their means marked. before, after: [N] numbers each."""
    figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    bins = np.histogram_bin_edges(np.concatenate([np.asarray(before), np.asarray(after)]), 30)
    for numbers, name, color in ((before, "before", "tab:gray"), (after, "after", "tab:blue")):
        numbers = np.asarray(numbers)
        ax.hist(numbers, bins, alpha=0.55, color=color, label=f"{name}: mean {numbers.mean():.2f}")
        ax.axvline(numbers.mean(), color=color, linestyle="--")
    ax.set(title=title, xlabel=label, ylabel="responses")
    ax.legend(frameon=False)
    return figure


def ratio_histogram(ratios, clip_eps: float, title: str = "ratio of new to old probability"):
    """Histogram of the ratios [N] between 0 and 3, larger ones in the last bar, with the clip range marked."""
    figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    ax.hist(np.clip(np.asarray(ratios), 0, 3), np.linspace(0, 3, 61), color="tab:blue")
    for edge in (1 - clip_eps, 1 + clip_eps):
        ax.axvline(edge, color="tab:red", linestyle="--", label=f"1 ± {clip_eps}" if edge > 1 else None)
    ax.set(title=title, xlabel="ratio (the last bar holds all above)", ylabel="actions", yscale="log", xlim=(0, 3))
    ax.legend(frameon=False)
    return figure


def token_heatmap(
    rows: list[list[str]], values: list[list[float]], label: str, cmap: str = "viridis_r", title: str = ""
):
    """Texts as rows of boxes, one per token, coloured by a number per token; `label` names the number and its unit."""
    low, high = min(map(min, values)), max(map(max, values))
    norm, colors = plt.Normalize(low, high), plt.get_cmap(cmap)
    widths = [[0.62 * max(len(token), 2) + 0.75 for token in tokens] for tokens in rows]
    longest = max(80, *map(sum, widths))
    figure, ax = plt.subplots(figsize=(11, 0.36 * len(rows) + 0.9), layout="constrained")
    for y, (tokens, numbers, row_widths) in enumerate(zip(rows, values, widths)):
        for token, number, width, x in zip(tokens, numbers, row_widths, np.cumsum([0, *row_widths])):
            color = colors(norm(number))
            dark = np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.5
            ax.add_patch(plt.Rectangle((x, -y - 0.42), width - 0.15, 0.84, color=color, linewidth=0))
            ax.text(x + width / 2, -y, token.replace("$", r"\$"), ha="center", va="center", family="monospace",
                    fontsize=8 * 80 / longest, color="white" if dark else "black")  # fmt: skip
    ax.set(xlim=(0, longest), ylim=(-len(rows) + 0.4, 0.6), title=title)
    ax.axis("off")
    figure.colorbar(plt.cm.ScalarMappable(norm, cmap), ax=ax, label=label, fraction=0.03, pad=0.01)
    return figure


def side_by_side(columns: dict[str, list]) -> HTML:
    """Texts or numbers as a table with one column for each entry of `columns`."""
    cell = '<td style="text-align:left;vertical-align:top;white-space:normal">{}</td>'
    head = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in columns)
    body = "".join(
        f"<tr>{''.join(cell.format(html.escape(f'{x:.2f}' if isinstance(x, float) else str(x))) for x in row)}</tr>"
        for row in zip(*columns.values())
    )
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
