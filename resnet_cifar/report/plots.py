"""The pictures: one run's curves, and many runs' accuracy over epochs and against time.

Lines differ in colour (Okabe and Ito's, safe for the colour-blind) and in style or marker.
"""

import itertools
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from resnet_cifar.report.statistics import Curve, Series

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
LINE_STYLES = ("-", "--", "-.", ":")
SPLITS: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("train (epoch average)", {"color": "#666666", "linestyle": "--", "marker": "s"}),
    "validation": ("validation", {"color": "#D55E00", "linestyle": "-.", "marker": "^"}),
    "validation_ema": (
        "validation, averaged weights",
        {"color": "#E69F00", "linestyle": ":", "marker": "v"},
    ),
    "test": ("test", {"color": "#0072B2", "linestyle": "-", "marker": "o"}),
    "test_ema": ("test, averaged weights", {"color": "#009E73", "linestyle": ":", "marker": "D"}),
}
LEGEND_BELOW: dict[str, Any] = {
    "loc": "upper left", "bbox_to_anchor": (0, -0.13), "frameon": False, "fontsize": 8,
    "handlelength": 4,
}  # fmt: skip
REPRODUCIBLE: dict[str, Any] = {"Software": None}  # Equal figures make equal files.


def plot_curves(
    rows: list[dict[str, Any]], learning_rates: list[tuple[float, float]], title: str, path: Path
) -> None:
    """Draw loss, accuracy and learning rate of one run over epochs as a PNG.

    Args:
      rows: the rows of `metrics.jsonl`.
      learning_rates: points (epoch, learning rate).
      title: stands above the three panels.
      path: the picture.
    """
    curves_figure(rows, learning_rates, title).savefig(path, dpi=120)


def curves_figure(
    rows: list[dict[str, Any]], learning_rates: list[tuple[float, float]], title: str
) -> Figure:
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=12)
    loss, accuracy, rate = figure.subplots(1, 3)
    for split, (name, look) in SPLITS.items():
        own = [row for row in rows if row["split"] == split]
        if own:
            epochs, losses = [row["epoch"] for row in own], [row["loss"] for row in own]
            percent = [100 * row["accuracy"] for row in own]
            style = {**look, "markersize": 4, "markevery": marker_spacing(len(own))}
            loss.plot(epochs, losses, label=f"{name}: {losses[-1]:.3f}", **style)
            accuracy.plot(epochs, percent, label=f"{name}: {percent[-1]:.2f} %", **style)
    rate.plot(*zip(*learning_rates, strict=True), color="#009E73")
    last = max(learning_rates[-1][0], *(row["epoch"] for row in rows))
    for axes, name in ((loss, "loss"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
        epoch_axis(axes, last)
        decorate(axes, name, "epoch")
    log_scale_if_wide(loss)
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy):
        axes.legend(**LEGEND_BELOW)
    return figure


def plot_learning(panels: dict[str, list[Curve]], title: str, path: Path) -> None:
    """Draw accuracy over epochs as a PNG: mean over seeds, in a band of one deviation.

    Args:
      panels: curves by the title of their panel.
      title: what all curves share, stated once above the panels.
      path: the picture.
    """
    learning_figure(panels, title).savefig(path, dpi=120, metadata=REPRODUCIBLE)


def learning_figure(panels: dict[str, list[Curve]], title: str) -> Figure:
    labels = {
        panel: [f"{curve.label}: {curve.mean[-1]:.2f} % (n={curve.seeds})" for curve in curves]
        for panel, curves in panels.items()
    }
    return panel_figure(title, labels, lambda axes, panel: draw_curves(axes, panels[panel]))


def draw_curves(axes: Axes, curves: list[Curve]) -> list[Line2D]:
    lines = []
    for curve, style in zip(curves, line_styles(), strict=False):
        mean, deviation = np.array(curve.mean), np.array(curve.deviation)
        every = marker_spacing(len(mean))
        lines += axes.plot(curve.epochs, mean, lw=1.4, markersize=4, markevery=every, **style)
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(curve.epochs, mean - deviation, mean + deviation, **band)
    # The first epochs of a long run would squeeze the rest.
    axes.set_ylim(bottom=min(lowest(curve) for curve in curves))
    epoch_axis(axes, max(curve.epochs[-1] for curve in curves))
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%), mean ± deviation")
    return lines


def lowest(curve: Curve) -> float:
    if len(curve.mean) > 20:
        return float(np.quantile(curve.mean, 0.1))
    return float(min(np.subtract(curve.mean, curve.deviation))) - 1


def plot_accuracy_against_time(panels: dict[str, list[Series]], path: Path) -> None:
    """Draw accuracy against time as a PNG; our own points are joined.

    Args:
      panels: series by the title of their panel.
      path: the picture.
    """
    figure = accuracy_against_time_figure(panels)
    figure.savefig(path, dpi=120, metadata=REPRODUCIBLE)


def accuracy_against_time_figure(panels: dict[str, list[Series]]) -> Figure:
    labels = {
        panel: [f"ours, {line.name}" if line.ours else line.name for line in series]
        for panel, series in panels.items()
    }
    title = "Each on its own device; the numbers are depths"
    return panel_figure(title, labels, lambda axes, panel: draw_series(axes, panels[panel]))


def draw_series(axes: Axes, series: list[Series]) -> list[Line2D]:
    lines = []
    ours, theirs = line_styles(), itertools.cycle("x+*1234")
    for line in series:
        minutes = [point.minutes for point in line.points]
        scores = [point.accuracy for point in line.points]
        if line.ours:
            style = next(ours)
            lines += axes.plot(minutes, scores, **style)
            deviations = [point.deviation for point in line.points]
            axes.errorbar(minutes, scores, deviations, fmt="none", capsize=3, color=style["color"])
        else:
            marker = next(theirs)
            lines += axes.plot(minutes, scores, marker=marker, linestyle="", color="#666666")
        for point in line.points:
            place = (point.minutes, point.accuracy)
            axes.annotate(point.network, place, (4, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("minutes of training and evaluation")
    axes.set_ylabel("test accuracy (%), ours mean ± deviation")
    return lines


def panel_figure(
    title: str, labels: dict[str, list[str]], draw: Callable[[Axes, str], list[Line2D]]
) -> Figure:
    """Draw panels side by side, each above a legend for which the figure makes room.

    Args:
      title: stands above the panels, wrapped to their width.
      labels: by panel, the label of each line in the order in which they are drawn.
      draw: draws one panel and returns its lines.
    """
    wrapped = {panel: [textwrap.fill(text, 80) for text in own] for panel, own in labels.items()}
    heights = [sum(text.count("\n") + 1 for text in own) for own in wrapped.values()]
    title_lines = textwrap.wrap(title, 80 * len(labels))
    height = 4.2 + 0.19 * max(heights) + 0.25 * len(title_lines)
    figure = Figure(figsize=(6.5 * len(labels), height), layout="constrained")
    figure.suptitle("\n".join(title_lines), fontsize=10)
    for axes, panel in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        lines = draw(axes, panel)
        decorate(axes, panel, axes.get_xlabel(), axes.get_ylabel())
        axes.legend(lines, wrapped[panel], **LEGEND_BELOW)
    return figure


def line_styles() -> Iterator[dict[str, Any]]:
    """Yield styles that differ in colour and marker, later in line style too."""
    for index in itertools.count():
        turn, place = divmod(index, len(COLORS))
        yield {
            "color": COLORS[place],
            "marker": MARKERS[(place + turn) % len(MARKERS)],
            "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
        }


def marker_spacing(points: int) -> int:
    return max(1, points // 10)


def epoch_axis(axes: Axes, last: float) -> None:
    """Show whole epochs only, from 0 to the last one, but at least to 1."""
    end = max(last, 1)
    axes.set_xlim(0, 1.02 * end)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 4, 5, 10], integer=True))


def log_scale_if_wide(axes: Axes) -> None:
    """Use a logarithmic axis, labelled at 1, 2 and 5, if the values span a factor of 5 or more."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [[1.0]])
    if values.min() > 0 and 5 * values.min() <= values.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")


def decorate(axes: Axes, title: str, x: str, y: str = "") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
