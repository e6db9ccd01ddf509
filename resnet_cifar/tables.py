"""The tables that the documents show, as lines of Markdown, from the files in results/."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import jax

from resnet_cifar import results
from resnet_cifar.config import EXCEPTIONS, RECIPES, Config, make_config
from resnet_cifar.models import ResNet
from resnet_cifar.results import Result, select, spread

DEPTHS = (20, 32, 44, 56, 110)
NETWORKS = tuple(f"ResNet{depth}" for depth in DEPTHS)
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
FILLED = ("card", "strong", "fast")  # The recipes of the model card.
NOTHING = "not measured yet"
Load = Callable[[str], list[Result]]  # From the name of a file in results/, without .json.


def between_markers(page: str, name: str, text: str) -> str:
    """Return a page with a text between the two comments that mark its place."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = page.partition(begin)
    return before + begin + text + end + rest.partition(end)[2]


def family(load: Load, up: str) -> list[str]:
    """Return the table of the family: parameters, accuracy and time of every network by every recipe."""
    rows = {"parameters": [f"{parameters(depth):,}" for depth in DEPTHS]}
    for dataset, recipe in ((dataset, recipe) for dataset in TITLES for recipe in FILLED):
        rows[f"{TITLES[dataset]} accuracy (%), `{recipe}`"] = [
            accuracy(select(load(recipe), dataset, depth)) for depth in DEPTHS
        ]
    for recipe in FILLED:
        devices = sorted({result["device"] for result in load(recipe)})
        for device in devices or [""]:
            own = [result for result in load(recipe) if result["device"] == device]
            where = f" on {device}" if device else " on one GPU"
            rows[f"training time{where}, `{recipe}`"] = [pace(own, depth) for depth in DEPTHS]
    return [
        *table(["", *NETWORKS], ([name, *cells] for name, cells in rows.items())),
        "",
        "Accuracy is that of the last epoch on the 10,000 test images, mean ± sample standard deviation (seeds);",
        "times are of the training steps of one run, without evaluation and compiling.",
        *origin(load, FILLED, up),
    ]


@cache
def parameters(depth: int) -> int:
    """Return the number of trained parameters of a member of the family, for ten classes."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    variables = jax.eval_shape(partial(ResNet(depth).init, train=False), jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def accuracy(runs: list[Result]) -> str:
    """Return a cell: mean ± standard deviation in percent (runs)."""
    if not runs:
        return NOTHING
    mean, deviation, n = spread([100 * run["test_accuracy"] for run in runs])
    return f"{mean:.2f} ({n})" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f} ({n})"


def pace(runs: list[Result], depth: int) -> str:
    """Return a cell: seconds of training, images per second, seconds an epoch, means over the runs."""
    own = [run for run in runs if run["depth"] == depth]
    if not own:
        return NOTHING
    seconds = statistics.mean(run["train_seconds"] for run in own)
    rate = statistics.mean(run["images_per_second"] for run in own)
    return f"{seconds:,.1f} s; {rate:,.0f} images/s; {seconds / own[0]['config']['num_epochs']:.2f} s an epoch"


def comparison(load: Load) -> list[str]:
    """Return the table of what the other recipes gain over the card's, seed by seed."""
    rows = []
    for dataset, recipe in ((dataset, recipe) for dataset in TITLES for recipe in FILLED[1:]):
        pairs = [[select(load(name), dataset, depth) for name in (recipe, "card")] for depth in DEPTHS]
        rows.append([f"{TITLES[dataset]}, `{recipe}` over `card`", *(gain(*pair) for pair in pairs)])
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
        for recipe in FILLED:
            cells = [accuracy(select(load(recipe), dataset, depth)) for depth in DEPTHS]
            epochs = f"{RECIPES[recipe].get('num_epochs', Config.num_epochs)} epochs, batch "
            batch = RECIPES[recipe].get("batch_size", Config.batch_size)
            rows.append([f"**this project, `{recipe}`**", *cells, f"{epochs}{batch}", "last epoch, mean of all seeds"])
        for peer in (peer for peer in others if peer["dataset"] == dataset):
            cells = [
                f"{peer['accuracy'][str(depth)]:.2f}" if str(depth) in peer["accuracy"] else "" for depth in DEPTHS
            ]
            rows.append([f"[{peer['name']}]({peer['url']})", *cells, peer["recipe"], peer["selection"]])
        heading = [title, *NETWORKS, "recipe", "which epoch"]
        lines += [*table(heading, rows), ""]
    return [*lines, f"What others report is in [peers.json]({up}results/peers.json), with its sources."]


def recipes() -> list[str]:
    """Return the table of every recipe's hyperparameters, as `Config` has them."""
    configs = {recipe: dataclasses.asdict(make_config(recipe)) for recipe in RECIPES}
    hidden = ("depth", "dataset", "data_dir", "seed", "width", "eval_every_epochs", "checkpoint_every_epochs")
    names = [field.name for field in dataclasses.fields(Config) if field.name not in hidden]
    rows = [
        [f"`{name}`", *(results.show(list_of(config[name])) or "none" for config in configs.values())] for name in names
    ]
    notes = [
        f"ResNet{depth} by `{recipe}` has " + ", ".join(f"`{name}={value}`" for name, value in fields.items()) + "."
        for (recipe, depth), fields in EXCEPTIONS.items()
    ]
    return [*table(["field", *(f"`{recipe}`" for recipe in configs)], rows), "", *notes]


def list_of(value: Any) -> Any:
    """Return a tuple as the list that JSON makes of it."""
    return list(value) if isinstance(value, tuple) else value


def summary(groups: dict[str, list[Result]]) -> list[str]:
    """Return tables of any runs, by what they were made by: each network's accuracy and time, and what one gains."""
    changes = {name.partition(" with ")[2] for name in groups}
    common = changes.pop() if len(changes) == 1 else ""  # What all have set alike is said once.
    short = {name: name.removesuffix(f" with {common}") for name in groups}
    rows, gains = [], []
    for name, group in groups.items():
        for dataset, depth in sorted({(result["dataset"], result["depth"]) for result in group}):
            own = select(group, dataset, depth)
            seconds = statistics.mean(result["train_seconds"] for result in own)
            rows.append([short[name], dataset, f"ResNet{depth}", accuracy(own), f"{seconds:,.0f}"])
            for other in list(groups)[: list(groups).index(name)]:
                cell = gain(own, select(groups[other], dataset, depth))
                if cell != NOTHING:
                    gains.append([f"{short[name]} over {short[other]}", dataset, f"ResNet{depth}", cell])
    lines = table(["made by", "data", "network", "test accuracy (%), seeds", "seconds of training"], rows)
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
        if runs := load(name):
            dates = sorted({run["date"] for run in runs})
            devices = ", ".join(sorted({run["device"] for run in runs}))
            versions = ", ".join(sorted({f"jax {run['versions']['jax']}" for run in runs}))
            when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
            lines.append(f"[{name}.json]({up}results/{name}.json): {len(runs)} runs, {devices}, {versions}, {when}.")
    return lines
