"""Train one network, or resume its run.

  resnet_cifar train --config=configs/resnet56.py
  resnet_cifar train --config=configs/resnet56.py:paper --config.dataset=cifar100 --config.seed=3

In a clone of the repository, `python main.py` takes the same flags. A config file is a Python
program and may do whatever you may: run only those that you trust.
"""

from typing import Any

from absl import flags

from resnet_cifar import train
from resnet_cifar.cli import enable_compile_cache
from resnet_cifar.config import validate
from resnet_cifar.config_flags import define_file, define_require, read_config
from resnet_cifar.connection import connected
from resnet_cifar.devices import require
from resnet_cifar.launch import find_launch
from resnet_cifar.stop import Stop
from resnet_cifar.workdir import run_name

HIDDEN = ()


def define_flags(values: flags.FlagValues) -> None:
    define_file(values)
    text = "Folder for the run's files; by default runs/<network, data set, recipe and seed>."
    flags.DEFINE_string("workdir", "", text, flag_values=values)
    flags.DEFINE_bool(
        "dry_run", False, "Print what the run would be, and stop.", flag_values=values
    )
    define_require(values)
    text = "HOST:PORT of process 0, for a run in several processes; srun makes it unnecessary."
    flags.DEFINE_string("coordinator", "", text, flag_values=values)
    flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str], stop: Stop) -> None:
    config, recipe = read_config(values, arguments)
    validate(config)
    given: dict[str, Any] = values.flag_values_dict()
    launch = find_launch(given["coordinator"], given["num_processes"], given["process_id"])
    # A dry run waits for no other process, and shows this one's devices.
    with connected(None if values["dry_run"].value else launch):
        require(values["require"].value or "")
        enable_compile_cache()
        if values["dry_run"].value:
            train.dry_run(config)
        else:
            workdir = values["workdir"].value or f"runs/{run_name(recipe, config)}"
            train.train_and_evaluate(config, workdir, stop=stop)


if __name__ == "__main__":
    raise SystemExit("error: the command is python -m resnet_cifar train")
