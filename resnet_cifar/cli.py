"""What the commands have in common: they end with a sentence and a status, never with a traceback."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator

from absl import flags, logging

from resnet_cifar.config import Config, unknown
from resnet_cifar.errors import UserError
from resnet_cifar.stop import Stop, Stopped


@contextlib.contextmanager
def command(stop: Stop) -> Iterator[None]:
    """Exit with 1 and the sentence of a `UserError`, or as a shell expects after the signal that asked to stop."""
    logging.set_verbosity(logging.WARNING)  # The libraries' news is not the user's,
    logging.get_absl_logger().setLevel(
        "CRITICAL"
    )  # and of what fails in orbax and TFDS we make a sentence.
    sys.unraisablehook = drop_closed_loops
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + (stop.signal or 0))  # 143 after SIGTERM, 130 after SIGINT.
    finally:
        stop.ignore()


def parse_flags(argv: list[str], prepare: Callable[[list[str]], None]) -> list[str]:
    """Parse the command line; a mistake in it, or in a config file, ends the program with one sentence.

    Args:
      argv: the command line.
      prepare: called with it before, to define flags or to raise a `UserError`.
    """
    try:
        prepare(argv)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(
                f"unexpected argument {rest[1]!r}: flags begin with --, as in --config.seed=1"
            )
    except (UserError, flags.Error) as error:
        # A long message is one of ml_collections with the traceback of a config file: its last line says it.
        sys.exit(f"error: {str(error).strip().splitlines()[-1]}")
    except Exception as error:  # A config file is a program, and anything can be wrong with it.
        sys.exit(
            f"error: the config can't be loaded: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        )
    return rest


def check_fields(argv: list[str]) -> None:
    """Raise a UserError for a field of the config that there is not, of which ml_collections makes a traceback."""
    names = [field.name for field in dataclasses.fields(Config)]
    for argument in argv:
        if (field := re.match(r"--?(?:no)?config\.([^=]*)", argument)) and field[1] not in names:
            raise UserError(unknown(f"config.{field[1]}", field[1], names))


def drop_closed_loops(unraisable) -> None:
    """Leave out what tensorstore's threads print, in pages, once orbax has given up a save or a restore."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
