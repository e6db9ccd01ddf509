"""Train many networks, and resume what was interrupted: by default every run of the model card.

  resnet_cifar sweep
  resnet_cifar sweep --recipes=card --datasets=cifar10 --depths=20,56 --seeds=0,1,2
  resnet_cifar sweep --gpus=all
  resnet_cifar sweep --shard=2/8
  resnet_cifar sweep --config=configs/resnet20.py --config.learning_rate=0.6,1.2 --seeds=0,1,2

Finished runs are skipped and interrupted ones resumed: rerun the command until the grid is
complete. The output of a run goes to `log.txt` in its folder. A --config.FIELD takes one value for
all runs or several, and every combination is trained. With --config=FILE, its config is the base,
with its own data set and depth, instead of the recipes.
"""

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from resnet_cifar.cli import enable_compile_cache, explain
from resnet_cifar.config import Config, validate
from resnet_cifar.config_flags import define_file, define_require, read_config
from resnet_cifar.devices import number_of_gpus, require
from resnet_cifar.errors import UserError
from resnet_cifar.grid import (
    DATASETS,
    DEPTHS,
    FIRST_SEEDS,
    FLAGS,
    RECIPES,
    SEEDS,
    Job,
    make_jobs,
    read_grid,
    take_shard,
)
from resnet_cifar.plan import load_splits, make_plan
from resnet_cifar.programs import Programs
from resnet_cifar.progress import cost, estimate, result, score, status, time_left
from resnet_cifar.recipes import make_config
from resnet_cifar.stop import Stop, Stopped
from resnet_cifar.streams import BrokenPipeSafe
from resnet_cifar.train import train_and_evaluate
from resnet_cifar.workdir import absolute, check_writable, saved_config
from resnet_cifar.workers import advice, gpu_ids, run_workers, share

HIDDEN = tuple(FLAGS)


def at_positions(jobs: list[Job], indices: list[int]) -> list[Job]:
    """Return the runs with these positions in the list, from 0; all without positions."""
    if beyond := [index for index in indices if index >= len(jobs)]:
        raise UserError(f"--runs={beyond[0]} is not in the list of {len(jobs)} runs, from 0")
    return [jobs[index] for index in indices] if indices else jobs


def sweep_by_gpu(
    jobs: list[Job],
    gpus: list[str],
    argv: list[str],
    stop: Stop,
    run: Callable[[dict[str, list[str]], Stop], None] = run_workers,
) -> None:
    """Train what is not finished, with a process for each GPU and its share of the runs.

    Args:
      jobs: the runs.
      gpus: as CUDA_VISIBLE_DEVICES names them.
      argv: the flags of the sweep, which the processes get.
      stop: polled; the runs in progress save first.
      run: runs the commands of the processes.
    """
    check(jobs)
    left = [index for index, job in enumerate(jobs) if not result(job)]
    print(status(jobs))
    if text := advice(len(left), len(gpus), by_gpu=True):
        print(text)
    commands = {}
    shares = share(left, len(gpus), lambda index: cost(jobs[index].config))
    for gpu, own in zip(gpus, shares, strict=True):
        if own:
            names = ", ".join(jobs[index].folder.name for index in own)
            print(f"GPU {gpu}: {len(own)} run{'s' * (len(own) != 1)}, {names}", flush=True)
            only = f"--runs={','.join(map(str, own))}"
            commands[gpu] = ["-m", "resnet_cifar", "sweep", *argv, "--gpus=", only]
    run(commands, stop)


def check(jobs: list[Job]) -> None:
    """Fail early if any run is impossible."""
    for job in jobs:
        validate(job.config)
        make_plan(job.config)
        saved_config(job.folder, job.config)
        result(job)


def sweep(
    jobs: list[Job],
    *,
    stop: Stop | None = None,
    train: Callable[..., Any] = train_and_evaluate,
    compiled: Callable[[Config], Programs] = Programs,
) -> None:
    """Train what is not finished, one run after the other.

    Args:
      jobs: the runs, as `make_jobs` returns them.
      stop: polled; the run in progress saves first.
      train: trains one run, called like `train_and_evaluate`.
      compiled: makes the programs that all seeds of a network share.

    Raises:
      UserError: nothing was started, or some runs failed while the others were trained.
      Stopped: the sweep was asked to stop.
    """
    stop = stop or Stop()
    check(jobs)
    print(status(jobs), flush=True)
    left = [job for job in jobs if not result(job)]
    # Runs that diverged would diverge again: they come last.
    left.sort(key=lambda job: (job.folder / "diverged.txt").exists())
    if text := advice(len(left), number_of_gpus(), by_gpu=False):
        print(text, flush=True)
    for config in {job.config.dataset: job.config for job in left}.values():
        load_splits(config, make_plan(config))  # Fail early if data is missing.
    for folder in {job.folder.parent for job in left}:
        check_writable(folder)
    programs = None  # Those of the latest run.
    failed = []
    for number, job in enumerate(left, 1):
        if stop.signal:
            raise Stopped("stopped between two runs: rerun the command to resume")
        name = job.folder.name
        print(f"{name}: run {number} of {len(left)}, log in {job.folder / 'log.txt'}", flush=True)
        try:
            programs = train_logged(job, programs, stop=stop, train=train, compiled=compiled)
        except Exception as error:
            if not (reason := explain(error)):
                raise
            failed.append(name)
            print(f"{name}: failed: {reason}", flush=True)
            continue
        finally:
            stop.release()
            # A cycle in matplotlib's savefig would keep the images of the run on the device.
            gc.collect()
        print(f"{name}: {score(job)}; {time_left(jobs, left[number:])}", flush=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(left)} runs failed: {', '.join(failed)}")


def train_logged(
    job: Job,
    programs: Programs | None,
    *,
    stop: Stop,
    train: Callable[..., Any],
    compiled: Callable[[Config], Programs],
) -> Programs:
    """Train one run with its output in its log; return its programs, for the next seed."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        log = (job.folder / "log.txt").open("a", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"the workdir {job.folder} can't be written: {error}") from error
    with log, contextlib.redirect_stdout(BrokenPipeSafe(log)):
        try:
            if programs is None or programs.misfits(job.config):
                programs = compiled(job.config)
            train(job.config, job.folder, stop=stop, programs=programs)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
            raise
    return programs


def each_once(flag: str, values: list[str]) -> list[str]:
    """Reject empty or repeated values."""
    if not all(values) or len(set(values)) < max(len(values), 1):
        raise UserError(
            f"--{flag}={','.join(values)} must be names or numbers separated by commas, each once"
        )
    return values


def numbers(flag: str, values: list[str]) -> list[int]:
    """Return the numbers of a flag; reject other values, and repeated ones."""
    if not all(value.isdecimal() for value in values):
        raise UserError(
            f"--{flag}={','.join(values)} must be numbers separated by commas, like 20,56"
        )
    return [int(value) for value in each_once(flag, [str(int(value)) for value in values])]


def define_flags(values: flags.FlagValues) -> None:
    def define(name: str, default: Sequence[Any], text: str) -> None:
        flags.DEFINE_list(name, [*map(str, default)], text, flag_values=values)

    define_file(values)
    define("recipes", RECIPES, "Recipes, the most valuable first.")
    define("datasets", DATASETS, "Data sets, the most valuable first.")
    define("depths", DEPTHS, "Depths of the networks, the most valuable first.")
    define("seeds", SEEDS, f"Seeds; the first {FIRST_SEEDS} of every network come first.")
    flags.DEFINE_string("workdir", "runs", "Folder of the runs' folders.", flag_values=values)
    text = "Share of this process: 2/8 is the second of eight."
    flags.DEFINE_string("shard", "1/1", text, flag_values=values)
    text = "Print what is finished, what is left and about how long it takes, and stop."
    flags.DEFINE_bool("dry_run", False, text, flag_values=values)
    text = "GPUs of this machine, like 0,1 or all: each gets a process and runs of its own."
    flags.DEFINE_string("gpus", "", text, flag_values=values)
    text = "Only these runs, by their positions in the list, from 0: --gpus sets it."
    flags.DEFINE_list("runs", [], text, flag_values=values)
    define_require(values)


def main(values: flags.FlagValues, arguments: list[str], stop: Stop) -> None:
    given: dict[str, Any] = values.flag_values_dict()
    jobs = read_jobs(values, arguments)
    if given["gpus"] and not given["dry_run"]:
        sweep_by_gpu(jobs, gpu_ids(given["gpus"]), [*typed(values), *arguments], stop)
        return
    require(given["require"])
    enable_compile_cache()
    if given["dry_run"]:
        check(jobs)
        print(status(jobs), flush=True)
        if line := estimate(jobs):
            print(line)
    else:
        sweep(jobs, stop=stop)


def read_jobs(values: flags.FlagValues, arguments: list[str]) -> list[Job]:
    """Return the runs of this process by its flags; UserError if they do not go together."""
    given: dict[str, Any] = values.flag_values_dict()
    if not given["workdir"]:
        raise UserError("--workdir= must be a folder, such as runs")
    grid = read_grid(arguments, [*values])
    make = make_config
    if given["config"]:
        base, recipe = read_config(values, [])
        if values["recipes"].present:
            raise UserError("--config and --recipes exclude each other: use --config=FILE:RECIPE")
        if recipe and values["depths"].present:
            raise UserError(
                "--depths would miss what a recipe sets for a depth: use --recipes and --depths "
                "without --config"
            )
        make = partial(from_base, base)
        given["recipes"] = [recipe or file_label(Path(given["config"]), base)]
        for name, field in (("datasets", "dataset"), ("depths", "depth")):
            if not values[name].present:
                given[name] = [str(getattr(base, field))]
    jobs = make_jobs(
        absolute(given["workdir"]),
        grid,
        recipes=given["recipes"] if given["config"] else each_once("recipes", given["recipes"]),
        datasets=each_once("datasets", given["datasets"]),
        depths=numbers("depths", given["depths"]),
        seeds=numbers("seeds", given["seeds"]),
        make=make,
    )
    jobs = take_shard(jobs, given["shard"])
    return at_positions(jobs, numbers("runs", given["runs"]) if given["runs"] else [])


def typed(values: flags.FlagValues) -> list[str]:
    """Return the flags that were given; the defaults of some exclude others."""
    return [values[name].serialize() for name in values if values[name].present]


def from_base(base: Config, recipe: str, **fields: Any) -> Config:
    """Return the config of a file for another network, data set or seed."""
    del recipe
    return dataclasses.replace(base, **fields)


def file_label(path: Path, base: Config) -> str:
    """Name a config file, but not where its config is the card's."""
    card = make_config("card", depth=base.depth, dataset=base.dataset, seed=base.seed)
    return "" if base == card else path.stem


if __name__ == "__main__":
    sys.exit("error: the command is python -m resnet_cifar sweep")
