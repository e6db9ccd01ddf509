"""Train a CIFAR ResNet.

  python main.py --config=configs/resnet56.py
  python main.py --config=configs/resnet56.py:paper --config.dataset=cifar100 --config.seed=3

The fields of a config are in resnet_cifar/config.py. A config file is a Python program and may do all that you may: run
those that you trust.
"""

import signal

signal.signal(
    signal.SIGINT, signal.SIG_DFL
)  # Until Stop listens: some of the imports below would swallow a Ctrl-C.

import itertools
import re
import sys
from functools import partial
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from resnet_cifar.cli import check_fields, command, parse_flags
from resnet_cifar.config import Config, validate
from resnet_cifar.errors import UserError
from resnet_cifar.stop import Stop, Unbreakable
from resnet_cifar.workdir import run_name

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file, a Python program; a recipe after a colon."
)
WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder for the run's files; by default runs/<what runs>."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the run would be, and stop.")
STOP = Stop()


def main(_: list[str]) -> None:
    """Run what the flags say."""
    with command(STOP):
        config = CONFIG.value
        if not isinstance(config, Config):
            raise UserError(
                "get_config() of a config file must return a resnet_cifar.config.Config"
            )
        validate(config)
        from resnet_cifar import train  # After the checks: it takes seconds to import.
        from resnet_cifar.programs import keep_programs

        keep_programs()
        if DRY_RUN.value:
            train.dry_run(config)
        else:
            train.train_and_evaluate(config, WORKDIR.value or default_workdir(config), STOP)


def default_workdir(config: Config) -> str:
    """Say what runs, with the recipe after the colon of --config."""
    recipe = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]
    return f"runs/{run_name(recipe, config)}"


def check_config_flags(argv: list[str]) -> None:
    """Raise a UserError where absl and ml_collections would answer with a riddle or a traceback."""
    if any(argument.lstrip("-").startswith("help") for argument in argv[1:]):
        return
    paths = [argument.partition("=")[2] for argument in argv if re.match("--?config=", argument)]
    paths += [path for flag, path in itertools.pairwise(argv) if flag in ("-config", "--config")]
    if not paths or not paths[-1]:
        raise UserError(
            "give a config: --config=configs/resnet56.py, or --config=configs/quickstart.py to try"
        )
    path = Path(paths[-1].partition(":")[0])
    if not path.is_file():
        raise UserError(
            f"there is no config file {path}: the family is in configs/, and another depth is --config.depth"
        )
    check_fields(argv)


if __name__ == "__main__":
    sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
    STOP.listen()
    app.run(main, flags_parser=partial(parse_flags, prepare=check_config_flags))
