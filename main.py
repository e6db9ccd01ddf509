"""Train a CIFAR ResNet.

  python main.py --config=configs/resnet56.py
  python main.py --config=configs/resnet56.py:paper --config.dataset=cifar100 --config.seed=3

The fields of a config are in resnet_cifar/config.py. A config file is a Python program and may do all that you may: run
those that you trust.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Until Stop listens: some of the imports below would swallow a Ctrl-C.

import dataclasses
import itertools
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from resnet_cifar.config import Config, unknown, validate
from resnet_cifar.errors import UserError
from resnet_cifar.stop import Stop, Stopped, Unbreakable

CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, a Python program; a recipe after a colon.")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder for the run's files; by default runs/<what runs>.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the run would be, and stop.")
STOP = Stop()


def main(argv: list[str]) -> None:
    """Run what the flags say."""
    logging.set_verbosity(logging.WARNING)  # The libraries' news is not the user's,
    logging.get_absl_logger().setLevel("CRITICAL")  # and of what fails in orbax and TFDS we make a sentence.
    sys.unraisablehook = drop_closed_loops
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: flags begin with --, as in --config.depth=20")
        config = CONFIG.value
        if not isinstance(config, Config):
            raise UserError("get_config() of a config file must return a resnet_cifar.config.Config")
        validate(config)
        from resnet_cifar import train  # After the checks: it takes seconds to import.
        from resnet_cifar.run import keep_programs

        keep_programs()
        if DRY_RUN.value:
            train.dry_run(config)
        else:
            train.train_and_evaluate(config, WORKDIR.value or default_workdir(config), STOP)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + (STOP.signal or 0))  # 143 after SIGTERM, 130 after SIGINT: what a shell says of them.
    finally:
        STOP.ignore()


def default_workdir(config: Config) -> str:
    """Say what runs: runs/resnet56-cifar10-seed0, or runs/resnet56-cifar10-paper-seed0."""
    recipe = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]
    recipe = "" if recipe == "card" else recipe
    return "-".join(filter(None, [f"runs/resnet{config.depth}", config.dataset, recipe, f"seed{config.seed}"]))


def drop_closed_loops(unraisable) -> None:
    """Leave out what tensorstore's threads print, in pages, once orbax has given up a save or a restore."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it, or in the config file, ends the program with one sentence."""
    try:
        if not any(argument.lstrip("-").startswith("help") for argument in argv[1:]):
            check_config_flags(argv)
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        # A long message is one of ml_collections with the traceback of a config file: its last line says it.
        sys.exit(f"error: {str(error).strip().splitlines()[-1]}")
    except Exception as error:  # A config file is a program, and anything can be wrong with it.
        sys.exit(f"error: the config can't be loaded: {type(error).__name__}: {str(error).strip().splitlines()[-1]}")


def check_config_flags(argv: list[str]) -> None:
    """Raise a UserError where absl and ml_collections would answer with a riddle or a traceback."""
    paths = [argument.partition("=")[2] for argument in argv if re.match("--?config=", argument)]
    paths += [path for flag, path in itertools.pairwise(argv) if flag in ("-config", "--config")]
    if not paths or not paths[-1]:
        raise UserError("give a config: --config=configs/resnet56.py, or --config=configs/quickstart.py to try")
    path = Path(paths[-1].partition(":")[0])
    if not path.is_file():
        raise UserError(
            f"there is no config file {path}: the family is in configs/, and another depth is --config.depth"
        )
    names = [field.name for field in dataclasses.fields(Config)]
    for argument in argv:
        if (field := re.match(r"--?(?:no)?config\.([^=]*)", argument)) and field[1] not in names:
            raise UserError(unknown(f"config.{field[1]}", field[1], names))


if __name__ == "__main__":
    sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
    STOP.listen()
    app.run(main, flags_parser=parse_flags)
