"""The pictures of an evaluation: reliability diagram, confusion matrix, confident mistakes.

Shades of one colour, hatches and numbers carry the meaning, so that they survive grey print.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from resnet_cifar.evaluation import (
    BINS,
    Reliability,
    confident_mistakes,
    most_confused,
    percent,
)
from resnet_cifar.report.evaluations import Evaluation
from resnet_cifar.report.plots import COLORS, REPRODUCIBLE, decorate

MATRIX_CLASSES = 20  # With more, the matrix is too fine to read: the most frequent mistakes are.
MISTAKES = 40
ACROSS = 8


def plot_evaluation(evaluation: Evaluation, folder: Path) -> list[str]:
    """Draw the network or the ensemble; return the names of the files."""
    figures = {
        "reliability.png": reliability_figure(evaluation),
        "confusion.png": confusion_figure(evaluation),
        "mistakes.png": mistakes_figure(evaluation),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120, metadata=REPRODUCIBLE)
    return [*figures]


def heading(evaluation: Evaluation) -> str:
    scores = evaluation.main.scores
    return (
        f"{evaluation.main.label} on {evaluation.title}: {scores.correct:,} of {scores.n:,} correct"
    )


def reliability_figure(evaluation: Evaluation) -> Figure:
    """Draw accuracy against confidence, above the number of images at each confidence."""
    figure = Figure(figsize=(6, 7), layout="constrained")
    figure.suptitle(heading(evaluation), fontsize=10, wrap=True)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = evaluation.main.scores.reliability
    draw_reliability(upper, bins)
    error = f"Expected calibration error: {bins.error:.4f}"
    decorate(upper, error, "", "accuracy")
    lower.bar(left_edges(), bins.count, 1 / BINS, align="edge", color=COLORS[0], edgecolor="white")
    decorate(lower, "", "confidence: probability of the predicted class", "images")
    lower.set_yscale("log")
    lower.set_ylim(bottom=0.5)
    lower.set_xlim(0, 1)
    return figure


def draw_reliability(axes: Axes, bins: Reliability) -> None:
    """Draw the accuracy of each bin as a bar, and its distance to the confidence as a hatch."""
    accuracy, confidence = bins.accuracy, bins.confidence  # nan, not drawn, in an empty bin.
    bar = {"width": 1 / BINS, "align": "edge"}
    axes.bar(left_edges(), accuracy, color=COLORS[0], edgecolor="white", label="accuracy", **bar)
    axes.bar(
        left_edges(), confidence - accuracy, bottom=accuracy, facecolor="none", hatch="////",
        edgecolor=COLORS[1], label="distance to the mean confidence", **bar,
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", label="perfect calibration")
    axes.set_ylim(0, 1)
    axes.legend(loc="upper left", frameon=False, fontsize=8)


def left_edges() -> np.ndarray:
    return np.arange(BINS) / BINS


def confusion_figure(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix, or with many classes the most frequent mistakes."""
    confusion, names = evaluation.main.scores.confusion, evaluation.class_names
    many = len(names) > MATRIX_CLASSES
    side = 7.5 if many else 2.5 + 0.6 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    figure.suptitle(heading(evaluation), fontsize=10, wrap=True)
    axes = figure.subplots()
    if many:
        draw_pairs(axes, confusion, names)
    else:
        draw_matrix(axes, confusion, names)
    return figure


def draw_matrix(axes: Axes, confusion: np.ndarray, names: tuple[str, ...]) -> None:
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    # The square root lets a mistake in a hundred be seen beside the diagonal.
    axes.imshow(share, cmap="Greys", norm=PowerNorm(0.5, 0, 1))
    for (row, column), images in np.ndenumerate(confusion):
        if images:
            color = "white" if share[row, column] > 0.25 else "black"
            axes.text(column, row, f"{images:,}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")


def draw_pairs(axes: Axes, confusion: np.ndarray, names: tuple[str, ...]) -> None:
    pairs = most_confused(confusion, 30)
    labels = [f"{names[label]} taken for {names[predicted]}" for label, predicted, _ in pairs]
    counts = [images for *_, images in pairs]
    bars = axes.barh(range(len(pairs)), counts, color=COLORS[0])
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(range(len(pairs)), labels, fontsize=8)
    axes.invert_yaxis()
    decorate(axes, f"The most frequent mistakes of {len(names)} classes", "images")
    axes.grid(False, axis="y")


def mistakes_figure(evaluation: Evaluation) -> Figure:
    """Draw the mistakes with the largest probabilities, the most confident first."""
    outputs, labels = evaluation.main.outputs, np.asarray(evaluation.images.labels)
    chosen = confident_mistakes(outputs, labels, MISTAKES)
    rows = max(1, -(-len(chosen) // ACROSS))
    height = 0.6 + 1.9 * rows  # In inches.
    figure = Figure(figsize=(1.5 * ACROSS, height))
    # A layout engine would take seconds over so many panels.
    figure.subplots_adjust(0.01, 0.05 / height, 0.99, 1 - 1.0 / height, 0.08, 0.36)
    title = f"The {len(chosen)} most confident mistakes: label, prediction, probability"
    text = f"{heading(evaluation)}\n{title}"
    figure.suptitle(text, y=1 - 0.1 / height, va="top", fontsize=10)
    for axes, image in zip(figure.subplots(rows, ACROSS, squeeze=False).flat, chosen, strict=False):
        axes.imshow(np.asarray(evaluation.images.images[image]), interpolation="nearest")
        predicted = outputs[image].argmax()
        axes.set_title(
            f"{evaluation.class_names[labels[image]]}\n→ {evaluation.class_names[predicted]} "
            f"{percent(np.exp(outputs[image, predicted]))}",
            fontsize=8,
        )
    for axes in figure.axes:
        axes.axis("off")
    return figure
