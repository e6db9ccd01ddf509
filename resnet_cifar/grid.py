"""The runs of a sweep: every recipe, network, combination of overrides, and seed.

--config.learning_rate=0.1,0.2 and --config.nesterov=true,false make four combinations.
"""

import ast
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_origin, get_type_hints

from resnet_cifar.config import Config
from resnet_cifar.config_flags import override
from resnet_cifar.errors import UserError
from resnet_cifar.programs import VALUES
from resnet_cifar.recipes import make_config
from resnet_cifar.report.variants import with_fields
from resnet_cifar.workdir import CHANGEABLE, run_name

# The most valuable first.
RECIPES = ("card", "strong", "fast")
DATASETS = ("cifar10", "cifar100")
DEPTHS = (56, 20, 110, 32, 44)
SEEDS = (0, 1, 2, 3, 4)
FLAGS = {"depth": "depths", "dataset": "datasets", "seed": "seeds"}  # Fields with a flag each.
FIRST_SEEDS = 3  # Seeds that come before the others: enough for a standard deviation.
LONGEST_NAME = 200  # File systems allow 255 bytes.


class Job(NamedTuple):
    """One run of a sweep."""

    recipe: str
    config: Config
    folder: Path
    overrides: Mapping[str, Any] = MappingProxyType({})  # Values of the fields that the grid sets.


def make_jobs(
    workdir: str | Path,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    recipes: Sequence[str] = RECIPES,
    datasets: Sequence[str] = DATASETS,
    depths: Sequence[int] = DEPTHS,
    seeds: Sequence[int] = SEEDS,
    make: Callable[..., Config] = make_config,
) -> list[Job]:
    """Return the runs in order of value: for each recipe, the first seeds of everything first.

    Runs that can share compiled programs follow each other.

    Args:
      workdir: folder for the folders of the runs.
      grid: values of fields of the config; every combination is trained.
      recipes: names, as those of recipes.RECIPES.
      datasets: names.
      depths: of the networks.
      seeds: of each network and combination.
      make: makes a config, called like `make_config`.

    Example:
      >>> jobs = make_jobs("runs", {"learning_rate": [0.1, 0.2]}, recipes=["card"],
      ...                  datasets=["cifar10"], depths=[20], seeds=[0])
      >>> [job.folder.name for job in jobs]
      ['resnet20-cifar10-learning_rate=0.1-seed0', 'resnet20-cifar10-learning_rate=0.2-seed0']
    """
    jobs = []
    for recipe, wave in itertools.product(recipes, (seeds[:FIRST_SEEDS], seeds[FIRST_SEEDS:])):
        networks = itertools.product(datasets, depths, combinations(grid or {}), wave)
        for dataset, depth, overrides, seed in networks:
            config = make(recipe, depth=depth, dataset=dataset, seed=seed)
            config = dataclasses.replace(config, **overrides)
            folder = Path(workdir).expanduser() / job_name(recipe, config, overrides)
            jobs.append(Job(recipe, config, folder, overrides))
    return jobs


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination; values that compiled programs take as arguments vary fastest."""
    names = sorted(grid, key=lambda name: name in VALUES)
    return [
        dict(zip(names, combination, strict=True))
        for combination in itertools.product(*(grid[name] for name in names))
    ]


def job_name(recipe: str, config: Config, overrides: Mapping[str, Any]) -> str:
    """Name the folder of a run by what is set: resnet20-cifar10-learning_rate=0.1-seed0."""
    *parts, seed = run_name(recipe, config).split("-")
    parts += [with_fields("", {n: v}) for n, v in overrides.items() if n not in CHANGEABLE]
    name = "-".join(parts).replace("/", "_")
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
    return f"{name}-{seed}"


def read_grid(arguments: Sequence[str], own: Collection[str]) -> dict[str, list[Any]]:
    """Return the values of each field in flags such as --config.learning_rate=0.1,0.2.

    Several values of a field that is a tuple stand in brackets: (80,120),(40,60).

    Args:
      arguments: of the command line, without the command's own flags.
      own: names of these, for hints.

    Raises:
      UserError: a field is unknown or has a flag of its own, or a value is wrong or repeated.
    """
    grid: dict[str, list[Any]] = {}
    for argument in joined(arguments):
        parsed = [override(Config(), [one], own)[1] for one in alternatives(argument)]
        for name in parsed[0]:
            if name in FLAGS:
                raise UserError(f"--config.{name} belongs to the runs: use --{FLAGS[name]}")
            values = [fields[name] for fields in parsed]
            if name in CHANGEABLE and len(values) > 1:
                raise UserError(f"{argument} changes no result: give --config.{name} one value")
            if any(value in values[:index] for index, value in enumerate(values)):
                raise UserError(f"{argument} repeats a value: give each once")
            grid[name] = values
    return grid


def joined(arguments: Sequence[str]) -> list[str]:
    """Write --config.FIELD VALUE as --config.FIELD=VALUE."""
    result: list[str] = []
    for argument in arguments:
        if result and not argument.startswith("-") and lacks_value(result[-1]):
            result[-1] += f"={argument}"
        else:
            result.append(argument)
    return result


def lacks_value(argument: str) -> bool:
    kind = field_type(argument)
    return argument.startswith("-") and "=" not in argument and kind not in (None, bool)


def alternatives(argument: str) -> list[str]:
    """Return --config.x=1 and --config.x=2 for --config.x=1,2."""
    flag, equals, text = argument.partition("=")
    if not equals:
        return [argument]
    if get_origin(field_type(argument)) is not tuple:
        return [f"{flag}={value}" for value in text.split(",")]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [argument]
    several = isinstance(value, tuple) and value and all(isinstance(v, tuple) for v in value)
    return [f"{flag}={one!r}" for one in value] if several else [argument]


def field_type(argument: str) -> Any:
    name = argument.partition("=")[0].lstrip("-").removeprefix("config.")
    return get_type_hints(Config).get(name)


def take_shard(jobs: list[Job], shard: str) -> list[Job]:
    """Return every 8th group of seeds from the second on, for the shard "2/8".

    The seeds of a network and combination stay together, as they share compiled programs.
    """
    try:
        index, count = (int(part) for part in shard.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise UserError(f"--shard={shard} must be like 2/8, the second of eight: from 1/8 to 8/8")
    groups = itertools.groupby(
        jobs, lambda job: (job.recipe, job.config.dataset, job.config.depth, job.overrides)
    )
    shares = [list(group) for _, group in groups][index - 1 :: count]
    return list(itertools.chain.from_iterable(shares))
