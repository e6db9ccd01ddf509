"""The tables that the documents show, as lines of Markdown, from the files in results/."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from resnet_cifar.config import Config
from resnet_cifar.errors import UserError
from resnet_cifar.models import ResNet
from resnet_cifar.recipes import DEPTH_OVERRIDES, RECIPES, make_config
from resnet_cifar.report import runs as results
from resnet_cifar.report.runs import Result, select, spread

DEPTHS = (20, 32, 44, 56, 110)
NETWORKS = tuple(f"ResNet{depth}" for depth in DEPTHS)
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
FILLED = ("card", "strong", "fast")  # The recipes of the model card.
NOTHING = "not measured yet"
Load = Callable[[str], list[Result]]  # From the name of a file in results/, without .json.


def between_markers(page: str, name: str, text: str) -> str:
    """Return a page with a text between the two comments that mark its place; UserError if one of them is missing."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(
            f"a page lacks the line {begin.strip()}, or {end.strip()} after it: put it back"
        )
    return before + begin + text + end + after


def shown(load: Load) -> list[str]:
    """Return the recipes that the documents show: those of the card, and any other that has runs."""
    return [recipe for recipe in RECIPES if recipe in FILLED or load(recipe)]


def family(load: Load, recipes: Iterable[str], up: str) -> list[str]:
    """Return the table of the family: parameters, accuracy and time of every network by some recipes."""
    rows = {"parameters, with 10 classes": [f"{parameters(depth):,}" for depth in DEPTHS]}
    for dataset, recipe in ((dataset, recipe) for dataset in TITLES for recipe in recipes):
        cells = [accuracy(load(recipe), dataset, depth) for depth in DEPTHS]
        rows[f"{TITLES[dataset]} accuracy (%), `{recipe}`"] = cells
    for recipe in recipes:
        own = results.finished(load(recipe))
        for device in sorted({result["device"] for result in own}) or ["one GPU"]:
            runs = [result for result in own if result["device"] == device]
            rows[f"training on {device}, `{recipe}`"] = [
                pace(select(runs, "cifar10", depth)) for depth in DEPTHS
            ]
    return [
        *table(["", *NETWORKS], ([name, *cells] for name, cells in rows.items())),
        "",
        "Accuracy is that of the last epoch on the 10,000 test images, mean ± sample standard deviation (seeds);",
        "times are of the training steps of one run on CIFAR-10, without evaluation and compiling.",
        *(origin(load, recipes, up) or ["No cell has been measured yet."]),
    ]


@cache
def parameters(depth: int) -> int:
    """Return the number of trained parameters of a member of the family, for ten classes."""

    def init():  # Traced only: a report must not take hold of an accelerator that may be training.
        return ResNet(depth).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init)["params"]))


def accuracy(runs: list[Result], dataset: str, depth: int) -> str:
    """Return a cell: mean ± standard deviation in percent (runs; how many more diverged)."""
    own = select(runs, dataset, depth)
    lost = sum(
        "diverged" in run and (run["dataset"], run["depth"]) == (dataset, depth) for run in runs
    )
    if not own:
        return f"all {lost} diverged" if lost else NOTHING
    mean, deviation, n = spread([100 * run["test_accuracy"] for run in own])
    number = f"{n}; {lost} diverged" if lost else f"{n}"
    return (
        f"{mean:.2f} ({number})"
        if math.isnan(deviation)
        else f"{mean:.2f} ± {deviation:.2f} ({number})"
    )


def pace(runs: list[Result]) -> str:
    """Return a cell: seconds of training, images per second, seconds an epoch, means over the runs."""
    if not runs:
        return NOTHING
    seconds = statistics.mean(run["train_seconds"] for run in runs)
    rate = statistics.mean(run["images_per_second"] for run in runs)
    return f"{seconds:,.1f} s; {rate:,.0f} images/s; {seconds / runs[0]['config']['num_epochs']:.2f} s an epoch"


def comparison(load: Load) -> list[str]:
    """Return the table of what the other recipes gain over the card's, seed by seed."""
    rows = []
    for dataset, recipe in (
        (dataset, recipe) for dataset in TITLES for recipe in shown(load) if recipe != "card"
    ):
        cells = [
            gain(*(select(load(name), dataset, depth) for name in (recipe, "card")))
            for depth in DEPTHS
        ]
        rows.append([f"{TITLES[dataset]}, `{recipe}` over `card`", *cells])
    return table(["points", *NETWORKS], rows)


def gain(runs: list[Result], others: list[Result]) -> str:
    """Return a cell: mean difference in points ± half of its 95 % interval (pairs)."""
    difference = results.paired(runs, others)
    if difference is None:
        return NOTHING
    return f"{100 * difference.mean:+.2f} ± {100 * difference.half_interval:.2f} ({difference.n})"


def peers(load: Load, others: list[dict[str, Any]], up: str) -> list[str]:
    """Return the tables of what others report, below our own rows."""
    lines = []
    for dataset, title in TITLES.items():
        rows = []
        for recipe in shown(load):
            cells = [accuracy(load(recipe), dataset, depth) for depth in DEPTHS]
            epochs = f"{RECIPES[recipe].get('num_epochs', Config.num_epochs)} epochs, batch "
            batch = RECIPES[recipe].get("batch_size", Config.batch_size)
            rows.append(
                [
                    f"**this project, `{recipe}`**",
                    *cells,
                    f"{epochs}{batch}",
                    "last epoch, mean of all seeds",
                ]
            )
        for peer in (peer for peer in others if peer["dataset"] == dataset):
            cells = [
                f"{peer['accuracy'][str(depth)]:.2f}" if str(depth) in peer["accuracy"] else ""
                for depth in DEPTHS
            ]
            rows.append(
                [f"[{peer['name']}]({peer['url']})", *cells, peer["recipe"], peer["selection"]]
            )
        heading = [title, *NETWORKS, "recipe", "which epoch"]
        lines += [*table(heading, rows), ""]
    return [
        *lines,
        f"What others report is in [peers.json]({up}results/peers.json), with their times.",
    ]


def recipes() -> list[str]:
    """Return the table of every recipe's hyperparameters, as `Config` has them."""
    configs = {recipe: dataclasses.asdict(make_config(recipe)) for recipe in RECIPES}
    hidden = (
        "depth",
        "dataset",
        "data_dir",
        "seed",
        "width",
        "eval_every_epochs",
        "checkpoint_every_epochs",
    )
    names = [field.name for field in dataclasses.fields(Config) if field.name not in hidden]
    rows = [
        [
            f"`{name}`",
            *(results.show(list_of(config[name])) or "none" for config in configs.values()),
        ]
        for name in names
    ]
    notes = [
        f"ResNet{depth} by `{recipe}` has "
        + ", ".join(f"`{name}={value}`" for name, value in fields.items())
        + "."
        for (recipe, depth), fields in DEPTH_OVERRIDES.items()
    ]
    return [*table(["field", *(f"`{recipe}`" for recipe in configs)], rows), "", *notes]


def list_of(value: Any) -> Any:
    """Return a tuple as the list that JSON makes of it."""
    return list(value) if isinstance(value, tuple) else value


def summary(groups: dict[str, list[Result]]) -> list[str]:
    """Return tables of any runs, by what they were made by: each network's accuracy and time, and what one gains."""
    short, common = results.short_names(groups)
    rows, gains = [], []
    for name, group in groups.items():
        for dataset, depth in sorted({(result["dataset"], result["depth"]) for result in group}):
            own = select(group, dataset, depth)
            seconds = f"{statistics.mean(run['train_seconds'] for run in own):,.0f}" if own else ""
            rows.append(
                [short[name], dataset, f"ResNet{depth}", accuracy(group, dataset, depth), seconds]
            )
            for other in list(groups)[: list(groups).index(name)]:
                cell = gain(own, select(groups[other], dataset, depth))
                if cell != NOTHING:
                    gains.append(
                        [f"{short[name]} over {short[other]}", dataset, f"ResNet{depth}", cell]
                    )
    lines = table(
        ["nearest recipe", "data", "network", "test accuracy (%), seeds", "seconds of training"],
        rows,
    )
    if gains:
        lines += ["", *table(["gain", "data", "network", "points, 95 % interval, pairs"], gains)]
    return [*([f"All with {common}.", ""] * bool(common)), *lines]


def table(heading: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in [heading, ["---"] * len(heading), *rows]]


def origin(load: Load, names: Iterable[str], up: str) -> list[str]:
    """Return a line for each file that numbers come from: runs, device, version, dates."""
    lines = []
    for name in names:
        if runs := results.finished(load(name)):
            dates = sorted({run["date"] for run in runs})
            devices = ", ".join(sorted({run["device"] for run in runs}))
            versions = ", ".join(sorted({f"jax {run['versions']['jax']}" for run in runs}))
            when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
            lines.append(
                f"[{name}.json]({up}results/{name}.json): {len(runs)} runs, {devices}, {versions}, {when}."
            )
    return lines
