"""Many runs from one command: every network, data set, recipe and seed of the model card, or those that flags name.

  python -m resnet_cifar.sweep
  python -m resnet_cifar.sweep --recipes=card --datasets=cifar10 --depths=20,56 --seeds=0,1,2
  python -m resnet_cifar.sweep --shard=2/8
  python -m resnet_cifar.sweep --workdir=runs/half --config.num_epochs=80 --config.decay_epochs=40,60

A run that has finished is left out, one that was cut off goes on where it stopped: start the same command again until
nothing is left. What a run would print is in `log.txt` in its folder. Any field of the config may be set, for all runs
alike.
"""

import signal

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Until Stop listens: some imports below would swallow a Ctrl-C.

import contextlib
import dataclasses
import datetime
import gc
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags
from ml_collections import config_flags

from resnet_cifar.cli import check_fields, command, parse_flags
from resnet_cifar.config import Config, validate
from resnet_cifar.errors import UserError
from resnet_cifar.plan import load_splits, make_plan
from resnet_cifar.programs import Programs, keep_programs
from resnet_cifar.recipes import make_config
from resnet_cifar.report.runs import read_summary
from resnet_cifar.stop import Stop, Stopped, Unbreakable
from resnet_cifar.train import train_and_evaluate
from resnet_cifar.workdir import check_config, check_same, check_writable, run_name

FIRST_SEEDS = 3  # Of every network, before the other seeds: enough for a standard deviation.


STOP = Stop()


class Cell(NamedTuple):
    """One run of a sweep."""

    recipe: str
    config: Config
    folder: Path


def make_cells(
    workdir: Path,
    overrides: dict[str, Any],
    *,
    recipes: list[str],
    datasets: list[str],
    depths: list[int],
    seeds: list[int],
) -> list[Cell]:
    """Return the runs in order of value: by recipe, the first seeds of every network and data set before the others."""
    waves = [seeds[:FIRST_SEEDS], seeds[FIRST_SEEDS:]]
    cells = []
    for recipe, wave in itertools.product(recipes, waves):
        for dataset, depth, seed in itertools.product(datasets, depths, wave):
            config = make_config(recipe, depth=depth, dataset=dataset, seed=seed)
            config = dataclasses.replace(config, **overrides)
            cells.append(Cell(recipe, config, workdir / run_name(recipe, config)))
    return cells


def take_share(cells: list[Cell], shard: str) -> list[Cell]:
    """Return every eighth network with its seeds for a shard such as "2/8", beginning with the second.

    Seeds stay together, as they share what is compiled; UserError if the shard is none.
    """
    try:
        index, count = (int(part) for part in shard.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise UserError(f"--shard={shard} must be like 2/8, the second of eight: from 1/8 to 8/8")
    groups = itertools.groupby(
        cells, lambda cell: (cell.recipe, cell.config.dataset, cell.config.depth)
    )
    shares = [list(group) for _, group in groups][index - 1 :: count]
    return list(itertools.chain.from_iterable(shares))


def finished(cell: Cell) -> dict[str, Any]:
    """Return the summary of a finished run, empty if it is not; UserError if another one is in its folder."""
    summary = read_summary(cell.folder)
    if summary is None:
        return {}
    check_same(cell.folder, summary["config"], cell.config)
    return summary if summary["config"]["num_epochs"] == cell.config.num_epochs else {}


def check(cells: list[Cell]) -> None:
    """Raise a UserError for what would go wrong with any of the cells, before anything has begun."""
    for cell in cells:
        validate(cell.config)
        make_plan(cell.config)
        check_config(cell.folder, cell.config)
        finished(cell)


def sweep(cells: list[Cell], stop: Stop) -> None:
    """Train what has not finished, one run after the other, each network compiled once for all its seeds.

    Raises:
      UserError: nothing can begin, or in the end some runs have failed; the others went on.
      Stopped: the sweep was asked to stop; the run under way has saved.
    """
    check(cells)
    print(status(cells), flush=True)
    left = [cell for cell in cells if not finished(cell)]
    left.sort(
        key=lambda cell: (cell.folder / "diverged.txt").exists()
    )  # They would diverge again: the others first.
    for config in {cell.config.dataset: cell.config for cell in left}.values():
        load_splits(config)  # Without the data nothing is to begin.
    for folder in {cell.folder.parent for cell in left}:
        check_writable(folder)
    kept: list[Programs] = []
    failed = []
    for number, cell in enumerate(left, 1):
        if stop.signal:
            raise Stopped("stopped between two runs: the same command goes on from there")
        name = cell.folder.name
        print(f"{name}: begins, {number} of {len(left)}; see {cell.folder / 'log.txt'}", flush=True)
        try:
            train(cell, kept, stop)
        except (
            UserError,
            jax.errors.JaxRuntimeError,
        ) as error:  # The latter if the device has too little memory.
            failed.append(name)
            print(f"{name}: failed: {str(error).splitlines()[0]}", flush=True)
            continue
        finally:
            stop.release()
            gc.collect()  # A cycle in matplotlib's savefig keeps the frames of a run, and its images on the device.
        summary = finished(cell)
        accuracy, seconds = summary["test_accuracy"], summary["train_seconds"]
        print(
            f"{name}: {accuracy:.2%} after {seconds:,.0f} s of training; {time_left(cells, left[number:])}",
            flush=True,
        )
    if failed:
        raise UserError(f"{len(failed)} of {len(left)} runs failed: {', '.join(failed)}")


def train(cell: Cell, kept: list[Programs], stop: Stop) -> None:
    """Train one run, its output into its log, with programs that were kept for its network or will be."""
    try:
        cell.folder.mkdir(parents=True, exist_ok=True)
        log = (cell.folder / "log.txt").open("a")
    except OSError as error:
        raise UserError(f"the workdir {cell.folder} can't be written: {error}") from error
    with log, contextlib.redirect_stdout(log):
        try:
            programs = next((programs for programs in kept if programs.serve(cell.config)), None)
            if programs is None:
                kept.append(programs := Programs(cell.config))
            train_and_evaluate(cell.config, cell.folder, stop, programs)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
            raise


def status(cells: list[Cell]) -> str:
    """Return a table of how many runs of each network have finished, and what is left."""
    depths = sorted({cell.config.depth for cell in cells})
    lines = [f"{'finished':<20}" + "".join(f"{f'ResNet{depth}':>11}" for depth in depths)]
    for recipe, dataset in dict.fromkeys((cell.recipe, cell.config.dataset) for cell in cells):
        own = [cell for cell in cells if (cell.recipe, cell.config.dataset) == (recipe, dataset)]
        by_depth = [
            [bool(finished(cell)) for cell in own if cell.config.depth == depth] for depth in depths
        ]
        counts = [f"{sum(done)} of {len(done)}" for done in by_depth]
        lines.append(f"{recipe:<8}{dataset:<12}" + "".join(f"{count:>11}" for count in counts))
    return "\n".join([*lines, time_left(cells, [cell for cell in cells if not finished(cell)])])


def time_left(cells: list[Cell], left: list[Cell]) -> str:
    """Say how many runs are left, and about how long they take if the finished ones are anything to go by."""
    runs = f"{len(left)} run{'s' * (len(left) != 1)} left"
    done = [(cell, summary) for cell in cells if (summary := finished(cell))]
    if not left or not done:
        return runs
    seconds = sum(summary["train_seconds"] + summary["eval_seconds"] for _, summary in done)
    seconds *= sum(cost(cell.config) for cell in left) / sum(cost(cell.config) for cell, _ in done)
    return f"{runs}, about {datetime.timedelta(seconds=round(seconds))}, and the time to compile"


def cost(config: Config) -> float:
    """Return something in proportion to the time a run takes: its images times the layers they pass."""
    return make_plan(config).num_steps * config.batch_size * (config.depth - 1)


def each_once(flag: str, values: list[str]) -> list[str]:
    """Return the values of a flag; UserError if there is none, or one twice."""
    if not all(values) or len(set(values)) < max(len(values), 1):
        raise UserError(
            f"--{flag}={','.join(values)} must be names or numbers with commas between them, each once"
        )
    return values


def numbers(flag: str, values: list[str]) -> list[int]:
    """Return the numbers of a flag; UserError if one is none, or there twice."""
    if not all(value.isdecimal() for value in values):
        raise UserError(
            f"--{flag}={','.join(values)} must be numbers with commas between them, like 20,56"
        )
    return [int(value) for value in each_once(flag, [str(int(value)) for value in values])]


def main(_: list[str]) -> None:
    """Run what the flags say."""
    values = flags.FLAGS
    with command(STOP):
        overrides = config_flags.get_override_values(values["config"])
        for field in ("depth", "dataset", "seed"):
            if field in overrides:
                raise UserError(f"--config.{field} would be the same for all runs: use --{field}s")
        if not values.workdir:
            raise UserError("--workdir= must be a folder, such as runs")
        cells = make_cells(
            Path(values.workdir).expanduser(),
            {name: getattr(values.config, name) for name in overrides},
            recipes=each_once("recipes", values.recipes),
            datasets=each_once("datasets", values.datasets),
            depths=numbers("depths", values.depths),
            seeds=numbers("seeds", values.seeds),
        )
        cells = take_share(cells, values.shard)
        keep_programs()
        if values.dry_run:
            check(cells)
            print(status(cells))
        else:
            sweep(cells, STOP)


def define_flags(argv: list[str]) -> None:
    """Define the flags of the command line."""
    check_fields(argv)
    flags.DEFINE_list("recipes", ["card", "strong", "fast"], "Recipes, the most wanted first.")
    flags.DEFINE_list("datasets", ["cifar10", "cifar100"], "Data sets, the most wanted first.")
    flags.DEFINE_list(
        "depths", ["56", "20", "110", "32", "44"], "Depths of the networks, the most wanted first."
    )
    flags.DEFINE_list(
        "seeds",
        ["0", "1", "2", "3", "4"],
        "Seeds; by each recipe, the first three of every network come first.",
    )
    flags.DEFINE_string("workdir", "runs", "Folder for the folders of the runs.")
    flags.DEFINE_string(
        "shard", "1/1", "The share of this process, by index: 2/8 is the second of eight."
    )
    flags.DEFINE_bool("dry_run", False, "Print what has finished and what is left, and stop.")
    config_flags.DEFINE_config_dataclass(
        "config", Config(), "Fields to set otherwise than the recipes do."
    )


if __name__ == "__main__":
    sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
    STOP.listen()
    app.run(main, flags_parser=partial(parse_flags, prepare=define_flags))
