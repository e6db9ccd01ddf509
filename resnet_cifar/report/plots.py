"""The pictures: of a run, and of many."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"train": "#8a8a8a", "validation": "#e07b39", "test": "#2b6cb0"}


def plot_curves(
    rows: list[dict[str, Any]], learning_rates: list[tuple[float, float]], title: str, path: Path
) -> None:
    """Draw loss, accuracy and learning rate over epochs as a PNG.

    Args:
      rows: of `metrics.jsonl`.
      learning_rates: points (epoch, learning rate).
      title: above the three panels.
      path: of the picture.
    """
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=12)
    loss, accuracy, rate = figure.subplots(1, 3)
    for split, color in COLORS.items():
        own = [row for row in rows if row["split"] == split]
        if not own:
            continue
        epochs = [row["epoch"] for row in own]
        style = {
            "color": color,
            "linewidth": 1.6,
            "marker": "o",
            "markersize": 3.5 if len(own) < 40 else 0,
        }
        loss.plot(
            epochs, [row["loss"] for row in own], label=f"{split} {own[-1]['loss']:.3f}", **style
        )
        percent = [100 * row["accuracy"] for row in own]
        accuracy.plot(epochs, percent, label=f"{split} {percent[-1]:.2f} %", **style)
    rate.plot(*zip(*learning_rates, strict=True), color="#2f855a", linewidth=1.6)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
        finish(axes, name, "epoch")
    loss.set_yscale("log")
    loss.legend(frameon=False)
    accuracy.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def plot_learning(
    curves: dict[str, dict[str, list[list[tuple[float, float]]]]], path: Path
) -> None:
    """Draw test accuracy over epochs as a PNG: a line for the mean over seeds, a band of one standard deviation.

    Args:
      curves: by panel and by name of a line, for each seed its points (epoch, accuracy in [0, 1]).
      path: of the picture.
    """
    figure = Figure(figsize=(6.5 * len(curves), 4.8), layout="constrained")
    for axes, (panel, lines) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        lowest = []
        for name, seeds in lines.items():
            epochs = [epoch for epoch, _ in seeds[0]]
            scores = 100 * np.array([[accuracy for _, accuracy in seed] for seed in seeds])
            mean, deviation = (
                scores.mean(axis=0),
                scores.std(axis=0, ddof=1) if len(seeds) > 1 else 0.0,
            )
            (line,) = axes.plot(
                epochs, mean, linewidth=1.4, label=f"{name}: {mean[-1]:.2f} % (n = {len(seeds)})"
            )
            axes.fill_between(
                epochs,
                mean - deviation,
                mean + deviation,
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
            )
            lowest.append(np.quantile(mean, 0.1) if len(mean) > 20 else min(mean - deviation))
        axes.set_ylim(bottom=min(lowest))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(
            frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=9
        )
        finish(axes, panel, "epoch", "test accuracy (%), mean ± deviation")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def plot_accuracy_over_time(
    panels: dict[str, dict[str, list[tuple[float, float, float, str]]]], path: Path
) -> None:
    """Draw accuracy against training time as a PNG.

    Args:
      panels: by panel and by name of a series, points (minutes, accuracy in %, its standard deviation, what it is); of
        a series whose name begins with "ours" the points are joined.
      path: of the picture.
    """
    figure = Figure(figsize=(6.5 * len(panels), 5.2), layout="constrained")
    for axes, (panel, series) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        crosses = itertools.cycle("x+*1234")
        for name, points in series.items():
            minutes, scores, deviations, labels = zip(*points, strict=True)
            if name.startswith("ours"):
                axes.errorbar(minutes, scores, deviations, marker="o", capsize=3, label=name)
            else:
                axes.plot(
                    minutes, scores, marker=next(crosses), linestyle="", color="0.45", label=name
                )
            for point in zip(minutes, scores, labels, strict=True):
                axes.annotate(
                    point[2], point[:2], (4, 4), textcoords="offset points", fontsize=7, color="0.3"
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(
            frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=8
        )
        finish(
            axes,
            panel,
            "minutes of training, each on its own device",
            "test accuracy (%), ours mean ± deviation",
        )
    figure.savefig(path, dpi=120, metadata={"Software": None})


def finish(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Give a panel its title, the names of its axes and a grid."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
