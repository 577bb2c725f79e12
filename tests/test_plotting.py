"""That the figures come out with the right parts; how they look is for eyes."""

import inspect
import os

os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.display import HTML, Markdown

from rlcourse import gpt2, losses, plotting
from rlcourse.ppo import PPOConfig, ppo_update


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("thing", [losses.clipped_surrogate_loss, ppo_update, PPOConfig])
def test_show_is_the_source(thing):
    shown = plotting.show(thing)
    assert isinstance(shown, Markdown)
    assert f"`{thing.__module__}.{thing.__name__}`" in shown.data
    fenced = shown.data.split("```python\n")[1].removesuffix("\n```")
    assert fenced == inspect.getsource(thing).rstrip() and "```" not in fenced


def test_progress_is_off_when_asked(monkeypatch, capfd):
    monkeypatch.setenv("RLCOURSE_PROGRESS", "0")
    assert list(plotting.progress(range(3), desc="steps")) == [0, 1, 2]
    assert plotting.progress([]).disable and capfd.readouterr() == ("", "")
    for value in ("1", None):
        monkeypatch.setenv("RLCOURSE_PROGRESS", value) if value else monkeypatch.delenv("RLCOURSE_PROGRESS")
        bar = plotting.progress(range(2), desc="steps")
        assert not bar.disable and list(bar) == [0, 1]
        assert "steps" in "".join(capfd.readouterr())


def test_seed_band():
    ax = plt.figure().subplots()
    runs = np.array([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]])
    plotting.seed_band(ax, runs, label="two seeds", color="tab:red")
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [1, 2, 3] and line.get_ydata().tolist() == [2, 3, 7]
    assert line.get_label() == "two seeds" and line.get_color() == "tab:red"
    (band,) = ax.collections
    edge = band.get_paths()[0].vertices
    for x, (low, high) in enumerate([(1, 3), (2, 4), (5, 9)], start=1):
        heights = edge[edge[:, 0] == x, 1]
        assert heights.min() == low and heights.max() == high


def test_seed_band_of_one_run_has_no_band():
    ax = plt.figure().subplots()
    plotting.seed_band(ax, [1.0, 2.0])
    assert ax.lines[0].get_ydata().tolist() == [1, 2] and not ax.collections


HISTORY = [
    {"score": 0.1, "kl": 0.0, "entropy": 3.0, "extra": 1.0},
    {"score": 0.5, "kl": 1.0, "entropy": 2.0, "extra": 1.0},
]
NAMES = {"score": "mean score", "kl": "KL, nats a response", "entropy": "entropy", "extra": "more"}


def test_learning_curves_of_one_run():
    figure = plotting.learning_curves(HISTORY, NAMES)
    assert len(figure.axes) == 6 and [ax.get_visible() for ax in figure.axes] == [True] * 4 + [False] * 2
    assert [ax.get_title() for ax in figure.axes[:4]] == list(NAMES.values())
    assert figure.axes[1].get_xlabel() == "iteration" and figure.axes[1].lines[0].get_ydata().tolist() == [0, 1]
    assert all(ax.get_legend() is None for ax in figure.axes)


def test_learning_curves_of_several_runs():
    figure = plotting.learning_curves({"fixed": HISTORY, "adaptive": HISTORY[::-1]}, {"score": "mean score"}, columns=1)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fixed", "adaptive"]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.1, 0.5], [0.5, 0.1]]


def test_before_after():
    figure = plotting.before_after([0.0, 0.1, 0.2], np.array([0.5, 1.0]), "rises", label="sentiment")
    (ax,) = figure.axes
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("rises", "sentiment", "responses")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before: mean 0.10", "after: mean 0.75"]
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([0.1, 0.75])


def test_ratio_histogram():
    (ax,) = plotting.ratio_histogram([0.7, 1.0, 1.3, 50.0], 0.2).axes
    assert "ratio" in ax.get_xlabel() and ax.get_ylabel() == "actions" and ax.get_yscale() == "log"
    assert "0.2" in ax.get_legend().get_texts()[0].get_text()
    assert sum(bar.get_height() for bar in ax.patches if isinstance(bar, plt.Rectangle)) >= 4  # none falls outside


def test_token_heatmap():
    rows, values = [[" a", " $5 film"], [" b", "<b>", "."]], [[-1.0, -5.0], [-2.0, 0.0, -3.0]]
    figure = plotting.token_heatmap(rows, values, "log-probability, nats", title="samples")
    assert len(figure.axes) == 2 and figure.axes[1].get_ylabel() == "log-probability, nats"
    ax = figure.axes[0]
    assert texts_of(ax) == [" a", r" \$5 film", " b", "<b>", "."] and len(ax.patches) == 5
    assert ax.get_title() == "samples"
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert heights[" a"] > heights[" b"]  # the first row on top
    colors = [patch.get_facecolor() for patch in ax.patches]
    assert len(set(colors)) == 5
    figure.canvas.draw()


def test_token_heatmap_of_equal_numbers():
    plotting.token_heatmap([["a", "b"]], [[0.0, 0.0]], "nats").canvas.draw()


def test_side_by_side_escapes_and_rounds():
    table = plotting.side_by_side({"before <b>": ["<script>alert(1)</script>", "a & b"], "score": [0.123456, 2]})
    assert isinstance(table, HTML)
    assert "<script>" not in table.data and "&lt;script&gt;alert(1)&lt;/script&gt;" in table.data
    assert "before &lt;b&gt;" in table.data and "a &amp; b" in table.data
    assert ">0.12<" in table.data and "0.123" not in table.data and ">2<" in table.data
    assert table.data.count("<tr>") == 3 and table.data.count("<td") == 4


def test_where_it_stands():
    row = (
        "the pessimistic bound",
        losses.clipped_surrogate_loss,
        "torch.minimum",
        f"test_plotting.py::{test_show_is_the_source.__name__}",
    )
    table = plotting.where_it_stands([row]).data
    lines = inspect.getsource(losses).splitlines()
    right = 1 + next(i for i, line in enumerate(lines) if "torch.minimum" in line)
    assert f"[rlcourse/losses.py, line {right}](../rlcourse/losses.py#L{right})" in table
    assert "| the pessimistic bound |" in table and "(../tests/test_plotting.py)" in table
    decorated = ("sampling", gpt2.sample_responses, "_inverse_cdf", row[-1])
    assert "[rlcourse/gpt2.py, line " in plotting.where_it_stands([decorated]).data


def test_where_it_stands_names_what_is_missing():
    test = f"test_plotting.py::{test_show_is_the_source.__name__}"
    with pytest.raises(ValueError, match=r"no line of clipped_surrogate_loss holds 'torch.maximum'"):
        plotting.where_it_stands([("x", losses.clipped_surrogate_loss, "torch.maximum", test)])
    with pytest.raises(ValueError, match=r"there is no test test_plotting.py::test_nobody_wrote"):
        plotting.where_it_stands([("x", losses.entropy, "return", "test_plotting.py::test_" + "nobody_wrote")])


def test_flow_diagram():
    boxes = {"policy": (1, 2), "reward": (5, 2), "update": (9, 2)}
    figure = plotting.flow_diagram(
        boxes, [("policy", "reward", "responses"), ("reward", "update", "scores [B]")], "PPO"
    )
    (ax,) = figure.axes
    assert ax.get_title() == "PPO" and {*boxes, "responses", "scores [B]"} <= set(texts_of(ax))
    (label,) = [text for text in ax.texts if text.get_text() == "responses"]
    assert label.get_position() == (3, 2)
    figure.canvas.draw()
