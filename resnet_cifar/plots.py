"""The picture of a run."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLORS = {"train": "#8a8a8a", "validation": "#e07b39", "test": "#2b6cb0"}


def plot_curves(rows: list[dict[str, Any]], learning_rates: list[tuple[float, float]], title: str, path: Path) -> None:
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
        style = {"color": color, "linewidth": 1.6, "marker": "o", "markersize": 3.5 if len(own) < 40 else 0}
        loss.plot(epochs, [row["loss"] for row in own], label=f"{split} {own[-1]['loss']:.3f}", **style)
        percent = [100 * row["accuracy"] for row in own]
        accuracy.plot(epochs, percent, label=f"{split} {percent[-1]:.2f} %", **style)
    rate.plot(*zip(*learning_rates, strict=True), color="#2f855a", linewidth=1.6)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
        axes.set_xlabel("epoch")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    loss.set_yscale("log")
    loss.legend(frameon=False)
    accuracy.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)
