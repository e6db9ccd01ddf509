"""Finished runs: gathered, told apart by their configs, and in numbers with their uncertainty."""

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from resnet_cifar.config import RECIPES, make_config
from resnet_cifar.errors import UserError
from resnet_cifar.workdir import CHANGEABLE, LATER, write_atomically

Result = dict[str, Any]  # A summary.json, in short.
CELL = ("dataset", "depth", "seed")  # What runs of the same recipe differ in.


class Spread(NamedTuple):
    """A mean over n runs and their sample standard deviation, which is nan for a single one."""

    mean: float
    deviation: float
    n: int


class Difference(NamedTuple):
    """What one recipe has over another, a pair for each seed: mean, half its 95 % interval (Student's t), pairs."""

    mean: float
    half_interval: float
    n: int


def collect(folder: Path) -> tuple[list[Result], list[Path]]:
    """Return the results of the finished runs anywhere below a folder, and the folders of those not finished."""
    results, unfinished = [], []
    for path in sorted(folder.rglob("config.json")):
        try:
            results.append(shorten(json.loads((path.parent / "summary.json").read_text())))
        except FileNotFoundError:
            unfinished.append(path.parent)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path.parent / 'summary.json'} can't be read ({error!r}): move that run away") from error
    return results, unfinished


def shorten(summary: dict[str, Any]) -> Result:
    """Return what of a summary is kept beside others: all but the accuracies of single epochs in full length."""
    epochs = {
        split: {"epoch": rows["epoch"], "accuracy": [round(value, 4) for value in rows["accuracy"]]}
        for split, rows in summary["epochs"].items()
    }
    names = (
        "test_accuracy", "test_top5_accuracy", "test_loss", "train_seconds", "eval_seconds", "compile_seconds",
        "images_per_second", "parameters", "steps", "date", "device", "XLA_FLAGS", "versions",
    )  # fmt: skip
    config = LATER | summary["config"]
    return {**{name: config[name] for name in CELL}, **{name: summary[name] for name in names}, "epochs": epochs} | {
        "config": {name: value for name, value in config.items() if name not in ("data_dir", *CELL)}
    }


def differences(result: Result, recipe: str) -> dict[str, Any]:
    """Return the fields, and their values, in which a run was made otherwise than a recipe makes it."""
    wanted = dataclasses.asdict(make_config(recipe, **{name: result[name] for name in CELL}))
    wanted = json.loads(json.dumps(wanted))  # Tuples are lists there.
    return {
        name: value
        for name, value in result["config"].items()
        if name not in CHANGEABLE and value != wanted.get(name, "missing")
    }


def label(result: Result) -> str:
    """Name what a run was made by: a recipe, and what was set otherwise."""
    others = {recipe: differences(result, recipe) for recipe in RECIPES}
    recipe = min(others, key=lambda recipe: len(others[recipe]))
    fields = ", ".join(f"{name}={show(value)}" for name, value in others[recipe].items())
    return f"{recipe} with {fields}" if fields else recipe


def show(value: Any) -> str:
    """Return a value as a flag has it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def by_label(results: list[Result]) -> dict[str, list[Result]]:
    """Gather results by what they were made by; UserError if two of them fill the same cell."""
    groups: dict[str, dict[tuple, Result]] = {}
    for result in results:
        cells = groups.setdefault(label(result), {})
        cell = tuple(result[name] for name in CELL)
        if cell in cells and cells[cell] != result:
            raise UserError(
                f"two runs of ResNet{result['depth']} on {result['dataset']} with seed {result['seed']} and the recipe "
                f"{label(result)}: move one away, and don't choose it by its result"
            )
        cells[cell] = result
    return {name: [cells[cell] for cell in sorted(cells)] for name, cells in sorted(groups.items())}


def merge(old: list[Result], new: list[Result]) -> list[Result]:
    """Return results with those that fill the same cells replaced by new ones."""
    cells = {tuple(result[name] for name in CELL): result for result in [*old, *new]}
    return [cells[cell] for cell in sorted(cells)]


def read(path: Path) -> list[Result]:
    """Return the results of a file, none if it is not there."""
    return json.loads(path.read_text())["runs"] if path.exists() else []


def write(path: Path, results: list[Result]) -> None:
    """Write results, a line for each run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(result) for result in results)
    write_atomically(path, f'{{"runs": [\n{lines}\n]}}\n')


def read_peers(folder: Path) -> list[dict[str, Any]]:
    """Return what others report, from the `peers.json` of a folder."""
    path = folder / "peers.json"
    return json.loads(path.read_text())["peers"] if path.exists() else []


def select(results: list[Result], dataset: str, depth: int) -> list[Result]:
    """Return the results of one network on one data set."""
    return [result for result in results if (result["dataset"], result["depth"]) == (dataset, depth)]


def spread(values: list[float]) -> Spread:
    """Return the mean and the sample standard deviation of some values."""
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


def paired(results: list[Result], others: list[Result]) -> Difference | None:
    """Compare the test accuracy of one network by two recipes over the seeds that both have; None below two."""
    scores, other_scores = ({result["seed"]: result["test_accuracy"] for result in side} for side in (results, others))
    gains = [scores[seed] - other_scores[seed] for seed in sorted(scores.keys() & other_scores.keys())]
    if len(gains) < 2:
        return None
    mean, deviation, n = spread(gains)
    return Difference(mean, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)
