"""Finished runs: gathered, told apart by their configs, and in numbers with their uncertainty."""

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from resnet_cifar.errors import UserError
from resnet_cifar.recipes import RECIPES, make_config
from resnet_cifar.workdir import CHANGEABLE, write_atomically
LATER={"decay": "steps", "nesterov": False}

Result = dict[str, Any]  # A summary.json, in short.
CELL = ("dataset", "depth", "seed")  # What runs of the same recipe differ in.
BEGIN = '{"runs": [\n'  # Of a file of results, with a line for each run.


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
    """Return the results of all runs below a folder, and the folders of those that have none yet.

    Raises:
      UserError: a result can't be read, or two runs were made by the same config.
    """
    results, unfinished, places = [], [], {}
    for place in sorted(
        {path.parent for name in ("config.json", "summary.json") for path in folder.rglob(name)}
    ):
        result = read_run(place)
        if result is None:
            unfinished.append(place)
            continue
        same = places.setdefault((label(result), cell(result)), place)
        if same != place:
            raise UserError(
                f"{same} and {place} are runs of the same config: move one away, not by its result"
            )
        results.append(result)
    return results, unfinished


def read_run(folder: Path) -> Result | None:
    """Return the result of a run, which may be that it diverged; None if it has none yet."""
    if summary := read_summary(folder):
        return shorten(summary)
    try:
        config = LATER | json.loads((folder / "config.json").read_text())
        reason = (folder / "diverged.txt").read_text().strip()
        return {
            **{name: config[name] for name in CELL},
            "diverged": reason,
            "config": without_cell(config),
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} can't be read ({error!r}): move that run away") from error


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the `summary.json` of a finished run, None if there is none; UserError if it is damaged."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        shorten(summary)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / 'summary.json'} can't be read ({error!r}): move that run away"
        ) from error
    return summary


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
    return {
        **{name: config[name] for name in CELL},
        **{name: summary[name] for name in names},
        "epochs": epochs,
        "config": without_cell(config),
    }


def without_cell(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a config is no matter of the cell, nor of the machine."""
    return {name: value for name, value in config.items() if name not in ("data_dir", *CELL)}


def cell(result: Result) -> tuple:
    """Return data set, depth and seed."""
    return tuple(result[name] for name in CELL)


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
    """Name what a run was made by: the recipe that is nearest, and what was set otherwise."""
    others = {recipe: differences(result, recipe) for recipe in RECIPES}
    recipe = min(others, key=lambda recipe: len(others[recipe]))
    fields = ", ".join(f"{name}={show(value)}" for name, value in others[recipe].items())
    return f"{recipe} with {fields}" if fields else recipe


def show(value: Any) -> str:
    """Return a value as a flag has it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def by_label(results: list[Result]) -> dict[str, list[Result]]:
    """Gather results by what they were made by, each group in the order of its cells."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=cell):
        groups.setdefault(label(result), []).append(result)
    return dict(sorted(groups.items()))


def short_names(groups: dict[str, list[Result]]) -> tuple[dict[str, str], str]:
    """Return the names of groups without what all of them have set alike, and what that is."""
    changes = {name.partition(" with ")[2] for name in groups}
    common = changes.pop() if len(changes) == 1 else ""
    return {name: name.removesuffix(f" with {common}") for name in groups}, common


def add(path: Path, results: list[Result]) -> None:
    """Add results to a file; UserError if it has another one for a cell: two runs are not chosen from."""
    cells = {cell(result): result for result in read(path)}
    for result in results:
        if cells.setdefault(cell(result), result) != result:
            dataset, depth, seed = cell(result)
            raise UserError(
                f"{path} has another run of ResNet{depth} on {dataset} with seed {seed}: keep one of them, not by its "
                "result, and remove that line from the file or move the run away"
            )
    write(path, [cells[key] for key in sorted(cells)])


def read(path: Path) -> list[Result]:
    """Return the results of a file, none if it is not there; UserError if it is damaged."""
    return read_file(path, "runs")


def read_peers(folder: Path) -> list[dict[str, Any]]:
    """Return what others report, from the `peers.json` of a folder."""
    return read_file(folder / "peers.json", "peers")


def read_file(path: Path, key: str) -> list[dict[str, Any]]:
    """Return a list from a JSON file."""
    try:
        return json.loads(path.read_text())[key] if path.exists() else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): restore it, for instance by git"
        ) from error


def write(path: Path, results: list[Result]) -> None:
    """Write results, a line for each run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(result) for result in results)
    write_atomically(path, f"{BEGIN}{lines}\n]}}\n")


def select(results: list[Result], dataset: str, depth: int) -> list[Result]:
    """Return the finished runs of one network on one data set."""
    return [
        result
        for result in finished(results)
        if (result["dataset"], result["depth"]) == (dataset, depth)
    ]


def finished(results: list[Result]) -> list[Result]:
    """Return the results without those that are a divergence."""
    return [result for result in results if "diverged" not in result]


def spread(values: list[float]) -> Spread:
    """Return the mean and the sample standard deviation of some values."""
    return Spread(
        statistics.mean(values),
        statistics.stdev(values) if len(values) > 1 else math.nan,
        len(values),
    )


def paired(results: list[Result], others: list[Result]) -> Difference | None:
    """Compare the test accuracy of one network by two recipes over the seeds that both have; None below two."""
    scores, other_scores = (
        {result["seed"]: result["test_accuracy"] for result in side} for side in (results, others)
    )
    gains = [
        scores[seed] - other_scores[seed] for seed in sorted(scores.keys() & other_scores.keys())
    ]
    if len(gains) < 2:
        return None
    mean, deviation, n = spread(gains)
    return Difference(mean, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)
