"""Heat maps: mean accuracy of a sweep over two fields, computed and drawn."""

import itertools
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from resnet_cifar.report.plots import REPRODUCIBLE
from resnet_cifar.report.ranking import mean_validation
from resnet_cifar.report.runs import epochs_of, networks, select
from resnet_cifar.report.variants import Run, format_value, varying_fields


class HeatMap(NamedTuple):
    """Mean accuracy (%) by two fields; nan where there is no run."""

    split: str
    x: str
    y: str
    x_values: list[str]
    y_values: list[str]
    accuracy: list[list[float]]  # [y, x].


def heat_maps(groups: dict[str, list[Run]]) -> dict[str, HeatMap]:
    """Return a map for each network, by its title, if the variants differ in exactly two fields.

    The accuracy is that of the validation split where there is one.
    """
    runs = list(itertools.chain.from_iterable(groups.values()))
    fields = varying_fields(runs)
    if len(fields) != 2:
        return {}
    y, x = fields
    maps = {}
    for dataset, depth in networks(runs):
        own = select(runs, dataset, depth)
        values = {field: ordered_values(own, field) for field in fields}
        if all(len(found) > 1 for found in values.values()):
            split = "test" if mean_validation(own) is None else "validation"
            cells = [
                [cell(own, {x: column, y: row}, split) for column in values[x]] for row in values[y]
            ]
            title = f"ResNet{depth} on {dataset}"
            maps[title] = HeatMap(split, x, y, values[x], values[y], cells)
    return maps


def ordered_values(runs: list[Run], field: str) -> list[str]:
    """Return the values of a field, numbers in ascending order."""
    values = {format_value(run["config"].get(field)): run["config"].get(field) for run in runs}
    numeric = all(isinstance(value, int | float) for value in values.values())
    order: Any = values.get if numeric else None
    return sorted(values, key=order)


def cell(runs: list[Run], fields: dict[str, str], split: str) -> float:
    own = [
        run
        for run in runs
        if all(format_value(run["config"].get(name)) == v for name, v in fields.items())
    ]
    accuracies = [epochs_of(run, split)["accuracy"][-1] for run in own]
    return 100 * statistics.mean(accuracies) if accuracies else math.nan


def plot_heat_maps(maps: dict[str, HeatMap], path: Path) -> None:
    """Draw the accuracy of each combination of two fields as a PNG, with its number in each cell.

    Args:
      maps: by the title of their panel.
      path: the picture.
    """
    heat_map_figure(maps).savefig(path, dpi=120, metadata=REPRODUCIBLE)


def heat_map_figure(maps: dict[str, HeatMap]) -> Figure:
    columns = max(len(own.x_values) for own in maps.values())
    rows = max(len(own.y_values) for own in maps.values())
    size = (1.6 + max(3.0, 0.9 * columns)) * len(maps), 1.4 + 0.5 * rows
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (title, own) in zip(panels, maps.items(), strict=True):
        accuracy = np.array(own.accuracy)
        image = axes.imshow(accuracy, cmap="cividis", aspect="auto")  # Its lightness is monotonic.
        axes.set_title(f"{title}: {own.split} accuracy (%)", fontsize=10)
        axes.set_xticks(range(len(own.x_values)), own.x_values)
        axes.set_yticks(range(len(own.y_values)), own.y_values)
        axes.set_xlabel(own.x)
        axes.set_ylabel(own.y)
        for (y, x), value in np.ndenumerate(accuracy):
            dark = image.norm(value) < 0.5
            text = "-" if np.isnan(value) else f"{value:.2f}"
            color = "white" if dark and text != "-" else "black"
            axes.text(x, y, text, ha="center", va="center", color=color)
    return figure
