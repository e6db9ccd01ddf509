"""Finished runs: gathered from workdirs, and kept in the files of results."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_cifar.config import with_defaults
from resnet_cifar.errors import UserError
from resnet_cifar.plan import EMA
from resnet_cifar.report.variants import KEY, Run, run_key, variant_name
from resnet_cifar.workdir import write_atomically

FILE_START = '{"runs": [\n'  # Begins a file of results, which has one line for each run.
DATASET_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}  # Those of the model card.
CARD_DEPTHS = (20, 32, 44, 56, 110)
REQUIRED = (
    "test_accuracy", "test_top5_accuracy", "test_loss", "train_seconds", "eval_seconds",
    "compile_seconds", "images_per_second", "parameters", "steps", "date", "device", "versions",
)  # fmt: skip


def collect_runs(workdir: Path) -> tuple[list[Run], list[Path]]:
    """Return all finished runs below a folder, and the folders of the unfinished ones.

    Raises:
      UserError: a summary can't be read, or two runs have the same config.
    """
    runs, unfinished, folders = [], [], {}
    names = ("config.json", "summary.json")
    for folder in sorted({path.parent for name in names for path in workdir.rglob(name)}):
        run = read_run(folder)
        if run is None:
            unfinished.append(folder)
            continue
        other = folders.setdefault((variant_name(run), run_key(run)), folder)
        if other != folder:
            raise UserError(
                f"{other} and {folder} are runs of the same config: "
                "move one of them away, chosen without regard to its result"
            )
        runs.append(run)
    return runs, unfinished


def read_run(folder: Path) -> Run | None:
    """Return the run of a folder, finished or diverged; None if it has neither."""
    if summary := read_summary(folder):
        return compact(summary)
    try:
        reason = (folder / "diverged.txt").read_text().strip()
        config = json.loads((folder / "config.json").read_text())
        return {**key_fields(config), "diverged": reason, "config": variant_fields(config)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} can't be read ({error!r}): move that run away") from error


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the `summary.json` of a finished run, None if there is none; UserError if damaged."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        compact(summary)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error!r}): move that run away") from error
    return summary


def compact(summary: dict[str, Any]) -> Run:
    """Compact a summary: move data set, depth and seed up, round per-epoch accuracies.

    Raises:
      KeyError: a field is missing. Data set, depth and seed have no defaults here, so that a
        config without them is not taken for ResNet56 on CIFAR-10.
    """
    epochs = {
        split: {"epoch": rows["epoch"], "accuracy": [round(value, 4) for value in rows["accuracy"]]}
        for split, rows in summary["epochs"].items()
    }
    measured = {name: summary[name] for name in REQUIRED} | summary
    return {
        **key_fields(summary["config"]),
        **measured,
        "epochs": epochs,
        "config": variant_fields(summary["config"]),
    }


def final_accuracy(run: dict[str, Any]) -> float:
    """Return the test accuracy of a run: that of its averaged weights if there are any."""
    return run.get(f"test_accuracy{EMA}", run["test_accuracy"])


def total_seconds(run: Run) -> float:
    """Return the seconds of training and evaluation of a run, without compilation."""
    return run["train_seconds"] + run["eval_seconds"]


def epochs_of(run: Run, split: str) -> dict[str, list[float]]:
    """Return "epoch" and "accuracy" of each evaluation of a split; empty if there was none.

    They are those of the averaged weights if there are any.
    """
    epochs = run["epochs"]
    return epochs.get(split + EMA, epochs.get(split, {"epoch": [], "accuracy": []}))


def key_fields(config: dict[str, Any]) -> dict[str, Any]:
    return {field: config[field] for field in KEY}


def variant_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config without dataset, depth, seed and data_dir."""
    hidden = ("data_dir", *KEY)
    return {field: value for field, value in with_defaults(config).items() if field not in hidden}


def add_runs(path: Path, runs: list[Run]) -> None:
    """Add runs to a file of results.

    Raises:
      UserError: the file has another run of the same network, data set and seed.
    """
    merged = {run_key(run): run for run in read_runs(path)}
    for run in runs:
        if merged.setdefault(run_key(run), run) != run:
            dataset, depth, seed = run_key(run)
            raise UserError(
                f"{path} has another run of ResNet{depth} on {dataset} with seed {seed}: keep one "
                "of them, chosen without regard to its result; remove that line from the file or "
                "move the run away"
            )
    write_runs(path, [merged[key] for key in sorted(merged)])


def read_runs(path: Path) -> list[Run]:
    """Return the runs of a file of results, none if it does not exist; UserError if damaged."""
    with damage_named(path):
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        return [{**run, "config": variant_fields(run["config"])} for run in runs]


def read_peers(folder: Path) -> list[dict[str, Any]]:
    """Return what others report, from the `peers.json` of a folder."""
    path = folder / "peers.json"
    with damage_named(path):
        return json.loads(path.read_text())["peers"] if path.exists() else []


def read_weights_scores(folder: Path) -> dict[str, float]:
    """Return the accuracy of each file of weights/ by name, from `evaluation_weights.json`."""
    path = folder / "evaluation_weights.json"
    with damage_named(path):
        results = json.loads(path.read_text())["results"] if path.exists() else []
        return {result["name"]: result["accuracy"] for result in results}


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): restore it, for instance by git"
        ) from error


def write_runs(path: Path, runs: list[Run]) -> None:
    """Write a file of results, one line for each run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run) for run in runs)
    write_atomically(path, f"{FILE_START}{lines}\n]}}\n")


def completed(runs: list[Run]) -> list[Run]:
    """Return the runs that did not diverge."""
    return [run for run in runs if "diverged" not in run]


def select(runs: list[Run], dataset: str, depth: int) -> list[Run]:
    """Return the completed runs of one network on one data set."""
    return [run for run in completed(runs) if (run["dataset"], run["depth"]) == (dataset, depth)]


def networks(runs: list[Run]) -> list[tuple[str, int]]:
    """Return each data set and depth that some of the runs have."""
    return sorted({(run["dataset"], run["depth"]) for run in runs})
