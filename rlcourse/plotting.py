"""What the notebooks show: sources, progress bars, curves with seed bands, ratios, token heat maps, tables of text."""

import html
import inspect
import os
from collections.abc import Iterable

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
    """Histogram of the ratios [N] with the clip range shaded."""
    figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    ax.axvspan(1 - clip_eps, 1 + clip_eps, color="tab:green", alpha=0.15, label=f"inside 1 ± {clip_eps}")
    ax.hist(np.asarray(ratios), 60, color="tab:blue")
    ax.set(title=title, xlabel="ratio", ylabel="actions", yscale="log")
    ax.legend(frameon=False)
    return figure


def token_heatmap(
    rows: list[list[str]], values: list[list[float]], label: str, cmap: str = "viridis_r", title: str = ""
):
    """Texts as rows of boxes, one per token, coloured by a number per token; `label` names the number and its unit."""
    low, high = min(map(min, values)), max(map(max, values))
    norm, colors = plt.Normalize(low, high), plt.get_cmap(cmap)
    figure, ax = plt.subplots(figsize=(11, 0.36 * len(rows) + 0.9), layout="constrained")
    for y, (tokens, numbers) in enumerate(zip(rows, values)):
        x = 0.0
        for token, number in zip(tokens, numbers):
            color, width = colors(norm(number)), 0.62 * max(len(token), 2) + 0.6
            dark = np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.5
            ax.add_patch(plt.Rectangle((x, -y - 0.42), width, 0.84, color=color, linewidth=0))
            ax.text(x + width / 2, -y, token.replace("$", r"\$"), ha="center", va="center", fontsize=8,
                    family="monospace", color="white" if dark else "black")  # fmt: skip
            x += width + 0.15
    ax.set(xlim=(0, 82), ylim=(-len(rows) + 0.4, 0.6), title=title)
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
