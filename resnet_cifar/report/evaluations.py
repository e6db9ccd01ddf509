"""The scores of networks on one set of images, as lines of text and as JSON."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from resnet_cifar.data import Images
from resnet_cifar.evaluation import McNemar, Scores, most_confused
from resnet_cifar.report.statistics import PairedDifference, Spread

ENSEMBLE = "ensemble"
SHOWN = 10  # Classes and mistakes in the text, where there are more.


class Result(NamedTuple):
    """One network, or the ensemble of all, on the images."""

    name: str  # The path of the network, or "ensemble".
    flip: bool  # Averaged with the outputs for the mirrored images.
    outputs: np.ndarray  # Log-probabilities, float64 [n, classes].
    scores: Scores

    @property
    def label(self) -> str:
        return f"{self.name}, flips averaged" if self.flip else self.name


class Comparison(NamedTuple):
    """Several networks compared: on the images, and over the seeds that two variants share."""

    accuracy: Spread
    on_images: list[tuple[str, str, McNemar]]
    over_seeds: list[tuple[str, str, PairedDifference]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns."""

    title: str  # Which images.
    images: Images  # With labels in the order of `class_names`.
    class_names: tuple[str, ...]
    results: list[Result]
    comparison: Comparison | None  # If there are several networks.

    @property
    def main(self) -> Result:
        """The network, or the ensemble of several, without flips."""
        return [result for result in self.results if not result.flip][-1]


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """Return the scores as text."""
    lines = [f"{evaluation.title}, {len(evaluation.images.labels):,} images", ""]
    rows = [["", "correct", "top-1", "top-5", "NLL", "ECE"]]
    rows += [score_cells(result) for result in evaluation.results]
    lines += [*aligned(rows), ""]
    if evaluation.comparison:
        lines += [*comparison_lines(evaluation.comparison), ""]
        lines += [f"The {ENSEMBLE}'s accuracy by class and most frequent mistakes:", ""]
    return [*lines, *class_lines(evaluation), "", *mistake_lines(evaluation)]


def score_cells(result: Result) -> list[str]:
    scores = result.scores
    return [
        result.label,
        f"{scores.correct:,} of {scores.n:,}",
        f"{scores.accuracy:.2%}",
        f"{scores.top5_accuracy:.2%}",
        f"{scores.nll:.4f}",
        f"{scores.reliability.error:.4f}",
    ]


def class_lines(evaluation: Evaluation) -> list[str]:
    """Return the accuracy of each class, or of the worst ones if there are many."""
    scores = evaluation.main.scores
    right, total = scores.confusion.diagonal(), scores.confusion.sum(1)
    present = np.flatnonzero(total)
    shown, heading = present, "class"
    if len(present) > 2 * SHOWN:
        shown = present[np.argsort(scores.class_accuracy[present], kind="stable")[:SHOWN]]
        heading = f"worst {SHOWN} of {len(present)} classes"
    rows = [
        [evaluation.class_names[i], f"{right[i]:,} of {total[i]:,}", f"{right[i] / total[i]:.2%}"]
        for i in shown
    ]
    return aligned([[heading, "correct", "top-1"], *rows])


def mistake_lines(evaluation: Evaluation) -> list[str]:
    names = evaluation.class_names
    mistakes = most_confused(evaluation.main.scores.confusion, SHOWN)
    rows = [[f"{names[i]} taken for {names[j]}", f"{images:,}"] for i, j, images in mistakes]
    return aligned([["most frequent mistakes", "images"], *rows])


def comparison_lines(comparison: Comparison) -> list[str]:
    mean, deviation, n = comparison.accuracy
    lines = [f"top-1 of {n} networks: {100 * mean:.2f} ± {100 * deviation:.2f} % (± 1 deviation)"]
    for first, second, test in comparison.on_images:
        lines.append(
            f"{first} alone is right on {test.only_first:,} images, {second} alone on "
            f"{test.only_second:,}: {p_value(test.p)} (McNemar's exact test)"
        )
    for first, second, difference in comparison.over_seeds:
        lines.append(
            f"{second} minus {first}: {100 * difference.mean:+.2f} ± "
            f"{100 * difference.half_interval:.2f} points (95 % interval over {difference.pairs} "
            "seeds, Student's t)"
        )
    return lines


def p_value(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-9 else "p < 1e-9"


def aligned(rows: list[list[str]]) -> list[str]:
    """Return a table as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the scores as JSON; what has no value, such as an empty bin's accuracy, is null."""
    results = [
        {"name": result.name, "flip": result.flip, **scores_json(result.scores)}
        | {"class_accuracy": by_class(result.scores, evaluation.class_names)}
        | {"confusion": result.scores.confusion.tolist()}
        for result in evaluation.results
    ]
    content: dict[str, Any] = {
        "data": evaluation.title,
        "class_names": list(evaluation.class_names),
        "results": results,
    }
    return content | (comparison_json(evaluation.comparison) if evaluation.comparison else {})


def scores_json(scores: Scores) -> dict[str, Any]:
    """Return all scores but those by class."""
    bins = scores.reliability
    return {
        "n": scores.n,
        "correct": scores.correct,
        "accuracy": scores.accuracy,
        "correct_top5": scores.correct_top5,
        "top5_accuracy": scores.top5_accuracy,
        "nll": scores.nll,
        "ece": bins.error,
        "reliability": {
            "count": bins.count.tolist(),
            "confidence": with_nulls(bins.confidence),
            "accuracy": with_nulls(bins.accuracy),
        },
    }


def by_class(scores: Scores, names: tuple[str, ...]) -> dict[str, float | None]:
    return dict(zip(names, with_nulls(scores.class_accuracy), strict=True))


def with_nulls(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "accuracy": comparison.accuracy._asdict(),
        "mcnemar": [
            {"first": first, "second": second, **test._asdict()}
            for first, second, test in comparison.on_images
        ],
        "over_seeds": [
            {"first": first, "second": second, **difference._asdict()}
            for first, second, difference in comparison.over_seeds
        ],
    }
