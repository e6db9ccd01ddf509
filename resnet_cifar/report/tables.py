"""The tables of the documents, as lines of Markdown, from the files of results."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from resnet_cifar.config import Config
from resnet_cifar.models import ResNet
from resnet_cifar.recipes import DEPTH_OVERRIDES, RECIPES, make_config
from resnet_cifar.report.pages import enumerate_words, markdown_table, wrap
from resnet_cifar.report.ranking import seeds_needed
from resnet_cifar.report.runs import (
    CARD_DEPTHS,
    DATASET_TITLES,
    completed,
    final_accuracy,
    networks,
    select,
    total_seconds,
)
from resnet_cifar.report.statistics import PairedDifference, paired_difference, spread
from resnet_cifar.report.variants import Run, format_value
from resnet_cifar.variables import num_parameters

Load = Callable[[str], list[Run]]  # Returns the runs of results/NAME.json.

PLANNED = ("card", "strong", "fast")  # The recipes that the sweep trains by default.
# Those beside our own on the first page: shortcut A, or the same recipe.
REFERENCES = ("He et al. 2015", "Composer's model card", "akamaster/pytorch_resnet_cifar10")
# Shown for every recipe; other fields only if one of the recipes changes them.
ALWAYS_SHOWN = ("shortcut", "warmup", "decay_factor", "momentum")
NO_RUN = "-"


def planned_recipes(load: Load) -> list[str]:
    """Return the recipes of the default sweep, and any other that has runs."""
    return [recipe for recipe in RECIPES if recipe in PLANNED or load(recipe)]


def measured_depths(runs: list[Run]) -> list[int]:
    """Return the depths that some of the runs have; all of the card if there are no runs."""
    found = {run["depth"] for run in runs}
    return [depth for depth in CARD_DEPTHS if depth in found or not found]


def family_table(
    load: Load,
    recipes: Iterable[str],
    up: str,
    peers: Iterable[dict[str, Any]] = (),
    weights: Mapping[str, float] | None = None,
) -> list[str]:
    """Return parameters, accuracy and time of every network that has runs.

    Args:
      load: returns the runs of a file of results.
      recipes: those whose runs are shown.
      up: the path from the page to the top of the repository, such as `../`.
      peers: entries of peers.json, of which the `REFERENCES` are shown below our accuracies.
      weights: the accuracy of files in weights/, by `resnet20-cifar10` and the like.
    """
    depths = measured_depths([run for recipe in recipes for run in load(recipe)])
    sizes = [f"{num_parameters(ResNet(depth)):,}" for depth in depths]
    rows = [["parameters, 10 classes", *sizes]]
    for dataset, title in DATASET_TITLES.items():
        for recipe in recipes:
            runs = [run for run in load(recipe) if run["dataset"] == dataset]
            name = f"{title} accuracy (%), `{recipe}`"
            if runs:
                rows.append([name, *accuracy_cells(runs, dataset, depths)])
            if has_averages(runs):
                cells = accuracy_cells(runs, dataset, depths, without_averaging)
                rows.append([f"{name} without averaging", *cells])
        cells = weights_cells(weights or {}, dataset, depths)
        if any(cells):
            link = f"[weights]({up}weights/README.md)"
            rows.append([f"{title} accuracy (%), {link} of seed 0 by `evaluate`", *cells])
        for peer in peers:
            if peer["name"] in REFERENCES and peer["dataset"] == dataset:
                rows.append([f"{title} accuracy (%), {peer_link(peer)}", *peer_cells(peer, depths)])
    for recipe in recipes:
        rows += time_rows(recipe, load(recipe), depths)
    lines = [*markdown_table(["", *network_names(depths)], rows), ""]
    if any(load(recipe) for recipe in recipes):
        lines += wrap(
            "Accuracy: last epoch, 10,000 test images, mean ± sample standard deviation (seeds). "
            "Seconds: one run on CIFAR-10 (mean over the seeds), without compilation."
        )
        lines += ["", *origin(load, recipes, up), ""]
    return [*lines, *missing_accuracies(load, recipes)]


def network_names(depths: Iterable[int]) -> list[str]:
    return [f"ResNet{depth}" for depth in depths]


def weights_cells(weights: Mapping[str, float], dataset: str, depths: Iterable[int]) -> list[str]:
    names = [f"resnet{depth}-{dataset}" for depth in depths]
    return [f"{100 * weights[name]:.2f}" if name in weights else "" for name in names]


def accuracy_cells(
    runs: list[Run],
    dataset: str,
    depths: Iterable[int],
    accuracy: Callable[[Run], float] = final_accuracy,
) -> list[str]:
    return [accuracy_cell(runs, dataset, depth, accuracy) for depth in depths]


def accuracy_cell(
    runs: list[Run], dataset: str, depth: int, accuracy: Callable[[Run], float] = final_accuracy
) -> str:
    """Return `mean ± deviation (runs; how many more diverged)`, in percent."""
    diverged = sum("diverged" in run and networks([run]) == [(dataset, depth)] for run in runs)
    own = select(runs, dataset, depth)
    if not own:
        return f"all {diverged} diverged" if diverged else NO_RUN
    mean, deviation, n = spread([100 * accuracy(run) for run in own])
    number = f"{n}; {diverged} diverged" if diverged else f"{n}"
    margin = "" if math.isnan(deviation) else f" ± {deviation:.2f}"
    return f"{mean:.2f}{margin} ({number})"


def has_averages(runs: list[Run]) -> bool:
    return any(run["config"].get("ema_decay") for run in runs)


def without_averaging(run: Run) -> float:
    return run["test_accuracy"]


def time_rows(recipe: str, runs: list[Run], depths: Iterable[int]) -> list[list[str]]:
    rows = []
    timed = [run for run in completed(runs) if run["dataset"] == "cifar10"]
    for device in sorted({run["device"] for run in timed}):
        own = [run for run in timed if run["device"] == device]
        cells = [time_cell(select(own, "cifar10", depth)) for depth in depths]
        rows.append([f"seconds of training and evaluation, `{recipe}` on {device}", *cells])
    return rows


def time_cell(runs: list[Run]) -> str:
    """Return the seconds of training and evaluation, mean over the runs."""
    return f"{statistics.mean(map(total_seconds, runs)):,.0f}" if runs else NO_RUN


def missing_accuracies(load: Load, recipes: Iterable[str]) -> list[str]:
    """Say which networks have no run by which recipe on which data sets."""
    pairs = []
    for recipe in recipes:
        for dataset, title in DATASET_TITLES.items():
            known = {run["depth"] for run in load(recipe) if run["dataset"] == dataset}
            absent = network_names(depth for depth in CARD_DEPTHS if depth not in known)
            if absent:
                which = f"{enumerate_words(absent)} by " if known else ""
                pairs.append((f"{which}`{recipe}`", title))
    return missing(pairs)


def missing(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Say in one sentence which (subject, data set) pairs have not been measured."""
    titles: dict[str, list[str]] = {}
    for subject, title in pairs:
        titles.setdefault(subject, []).append(title)
    subjects: dict[str, list[str]] = {}
    for subject, own in titles.items():
        subjects.setdefault(enumerate_words(own), []).append(subject)
    parts = [f"{enumerate_words(names)} on {where}" for where, names in subjects.items()]
    return wrap(f"Not measured yet: {'; '.join(parts)}.") if parts else []


def comparison_table(load: Load) -> list[str]:
    """Return what each other recipe gains over `card`, seed by seed."""
    rows, absent = [], []
    others = planned_recipes(load)[1:]
    depths = measured_depths([run for recipe in others for run in load(recipe)])
    for dataset, title in DATASET_TITLES.items():
        for recipe in others:
            pairs = [
                [select(load(name), dataset, depth) for name in (recipe, "card")]
                for depth in depths
            ]
            cells = [gain_cell(runs, baseline) for runs, baseline in pairs]
            if set(cells) == {NO_RUN}:
                absent.append((f"`{recipe}` over `card`", title))
            else:
                rows.append([f"{title}, `{recipe}` over `card`", *cells])
    table = [*markdown_table(["points", *network_names(depths)], rows), ""] if rows else []
    return [*table, *missing(absent)]


def gain_cell(runs: list[Run], baseline: list[Run]) -> str:
    """Return `mean difference ± half of its 95 % interval (pairs)`, in points."""
    difference = paired_difference(runs, baseline)
    return difference_cell(difference) if difference else NO_RUN


def difference_cell(difference: PairedDifference) -> str:
    mean, half, pairs, _ = difference
    return f"{100 * mean:+.2f} ± {100 * half:.2f} ({pairs})"


def more_seeds_cell(difference: PairedDifference) -> str:
    """Return how many more pairs would show a difference of 0.2 points."""
    needed = seeds_needed(difference.deviation)
    return "over 1,000" if needed is None else str(max(0, needed - difference.pairs))


def peers_table(load: Load, peers: list[dict[str, Any]], up: str) -> list[str]:
    """Return our accuracies above what others report, a table for each data set."""
    lines = []
    for dataset, title in DATASET_TITLES.items():
        rows = [
            own_row(recipe, load(recipe), dataset)
            for recipe in planned_recipes(load)
            if any(run["dataset"] == dataset for run in load(recipe))
        ]
        rows += [peer_row(peer) for peer in peers if peer["dataset"] == dataset]
        heading = [title, *network_names(CARD_DEPTHS), "recipe", "which epoch"]
        lines += [*markdown_table(heading, rows), ""]
    source = f"The figures of others and their times are in [peers.json]({up}results/peers.json)."
    return [*lines, *wrap(source)]


def own_row(recipe: str, runs: list[Run], dataset: str) -> list[str]:
    config = make_config(recipe)
    about = f"{format_value(config.num_epochs)} epochs, batch {config.batch_size}"
    cells = accuracy_cells(runs, dataset, CARD_DEPTHS)
    which = "last epoch, mean of all seeds" + ", averaged weights" * has_averages(runs)
    return [f"**this project, `{recipe}`**", *cells, about, which]


def peer_row(peer: dict[str, Any]) -> list[str]:
    return [peer_link(peer), *peer_cells(peer, CARD_DEPTHS), peer["recipe"], peer["selection"]]


def peer_link(peer: dict[str, Any]) -> str:
    return f"[{peer['name']}]({peer['url']})"


def peer_cells(peer: dict[str, Any], depths: Iterable[int]) -> list[str]:
    known = {int(depth): f"{value:.2f}" for depth, value in peer["accuracy"].items()}
    return [known.get(depth, "") for depth in depths]


def recipes_table() -> list[str]:
    """Return the hyperparameters of every recipe, without those that all leave at the default."""
    configs = [dataclasses.asdict(make_config(recipe)) for recipe in RECIPES]
    names = [
        name
        for name, default in dataclasses.asdict(Config()).items()
        if name in ALWAYS_SHOWN or any(config[name] != default for config in configs)
    ]
    rows = [[f"`{name}`", *(format_value(config[name]) for config in configs)] for name in names]
    lines = [*markdown_table(["field", *(f"`{recipe}`" for recipe in RECIPES)], rows), ""]
    lines.append("All other fields have their defaults.")
    for (recipe, depth), fields in DEPTH_OVERRIDES.items():
        values = ", ".join(f"`{name}={value}`" for name, value in fields.items())
        lines.append(f"ResNet{depth} by `{recipe}` has {values}.")
    return lines


def origin(load: Load, names: Iterable[str], up: str) -> list[str]:
    """Return, for each file of results, its number of runs, device, version and dates."""
    lines = []
    for name in names:
        if runs := completed(load(name)):
            dates = sorted({run["date"] for run in runs})
            devices = ", ".join(sorted({run["device"] for run in runs}))
            versions = ", ".join(sorted({f"jax {run['versions']['jax']}" for run in runs}))
            when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
            link = f"[{name}.json]({up}results/{name}.json)"
            lines.append(f"{link}: {len(runs)} runs, {devices}, {versions}, {when}.")
    return lines
