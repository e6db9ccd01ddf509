"""Accuracy on CIFAR-10-C and CIFAR-100-C by corruption and severity, as text and as JSON."""

import statistics
from typing import Any

from resnet_cifar.evaluation import Scores
from resnet_cifar.report.evaluations import aligned, scores_json

SEVERITIES = 5
# Those of the benchmark (Hendrycks and Dietterich 2019); the four others are for validation.
BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip

Table = dict[str, list[Scores]]  # By corruption, one for each severity.


def corruption_lines(tables: dict[str, Table]) -> list[str]:
    """Return a table of accuracies for each network."""
    lines = []
    for name, table in tables.items():
        rows = [[name, *(f"severity {i + 1}" for i in range(SEVERITIES)), "mean"]]
        rows += [accuracy_cells(corruption, [table[corruption]]) for corruption in table]
        rows += [
            accuracy_cells(title, [table[corruption] for corruption in chosen])
            for title, chosen in averages(table).items()
        ]
        lines += [*aligned(rows), "", f"correct: {counts(table)}", ""]
    return lines[:-1]


def accuracy_cells(title: str, rows: list[list[Scores]]) -> list[str]:
    """Return the mean accuracy over some corruptions at each severity, and over all."""
    means = [
        statistics.mean(scores.accuracy for scores in column) for column in zip(*rows, strict=True)
    ]
    return [title, *(f"{mean:.2%}" for mean in [*means, statistics.mean(means)])]


def averages(table: Table) -> dict[str, list[str]]:
    """Return which corruptions to average, by title: all, and those of the benchmark."""
    found = {f"mean of {len(table)}": list(table)} if len(table) > 1 else {}
    if set(BENCHMARK) < set(table):
        found["mean of the benchmark's 15"] = list(BENCHMARK)
    return found


def counts(table: Table) -> str:
    cells = [scores for row in table.values() for scores in row]
    return f"{sum(s.correct for s in cells):,} of {sum(s.n for s in cells):,}"


def corruption_json(title: str, tables: dict[str, Table]) -> dict[str, Any]:
    """Return all scores of all networks."""
    return {
        "data": title,
        "results": [
            {
                "name": name,
                "corruptions": {c: [scores_json(s) for s in row] for c, row in table.items()},
                "means": {t: mean_scores(table, chosen) for t, chosen in averages(table).items()},
            }
            for name, table in tables.items()
        ],
    }


def mean_scores(table: Table, chosen: list[str]) -> dict[str, float]:
    cells = [scores_json(scores) for name in chosen for scores in table[name]]
    names = ("accuracy", "top5_accuracy", "nll", "ece")
    return {name: statistics.mean(cell[name] for cell in cells) for name in names}


def in_order(names: list[str]) -> list[str]:
    """Sort corruptions as the benchmark does, others after them by name."""
    return sorted(names, key=lambda n: (BENCHMARK.index(n) if n in BENCHMARK else 99, n))
