"""What commands share: they end with a sentence and a status, and leave the process as it was."""

import atexit
import contextlib
import importlib
import os
import platform
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import flags, logging

from resnet_cifar.config_flags import help_lines, unknown_flag
from resnet_cifar.errors import UserError
from resnet_cifar.stop import SIGNALS, Stop, Stopped
from resnet_cifar.streams import safe_streams

HELP = {"help", "h", "helpshort", "helpfull"}


def run(name: str, argv: Sequence[str]) -> None:
    """Run the command of a module.

    The module's docstring is its help. It has `define_flags(values)`, `main(values, arguments,
    stop)` and `HIDDEN`: the fields of the config that its arguments can't override, or None if
    they can override none.

    Args:
      name: of the module.
      argv: the program's name and its flags.

    Raises:
      SystemExit: the command failed, with a sentence, or was stopped.
    """
    alone = not hasattr(sys, "ps1")  # Set at a prompt: IPython's %run, or a notebook.
    if alone:
        atexit.register(end_quietly)
    stop = Stop(exits=alone)
    with safe_streams(), quiet_libraries(), sentences(stop), stop:
        run_module(name, argv, stop)


def run_module(name: str, argv: Sequence[str], stop: Stop) -> None:
    """Print the help of a module's command, or run it."""
    command = importlib.import_module(name)
    values = flags.FlagValues()
    command.define_flags(values)
    if any(argument.lstrip("-") in HELP for argument in argv[1:]):
        print("\n".join([(command.__doc__ or "").strip(), "", *help_lines(values, command.HIDDEN)]))
        return
    command.main(values, parse(values, argv), stop)


def parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse a command's own flags, and those of any --flagfile; return the other arguments."""
    values.set_gnu_getopt(True)  # Own flags may follow others.
    try:
        return values(values.read_flags_from_files(argv), known_only=True)[1:]
    except (flags.Error, ValueError) as error:
        raise UserError(str(error)) from error


def operands(values: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command that takes paths; UserError if one is an unknown flag."""
    for argument in arguments:
        if argument.startswith("-"):
            raise UserError(unknown_flag(argument.lstrip("-").partition("=")[0], [*values]))
    return list(arguments)


@contextlib.contextmanager
def sentences(stop: Stop) -> Iterator[None]:
    """Exit with 1 and a sentence after a user's error, or as a shell expects after a signal."""
    try:
        yield
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + (stop.signal or 0))  # 143 after SIGTERM, 130 after SIGINT.
    except Exception as error:
        if sentence := explain(error):
            sys.exit(f"error: {sentence}")
        raise


def explain(error: Exception) -> str:
    """Return the sentence for an error that a user can fix, "" for any other."""
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, UserError):
        return str(error)
    exhausted = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    if isinstance(error, MemoryError) or exhausted:
        return (
            "the run does not fit into memory: lower --config.batch_size, --config.width or "
            f"--config.depth ({text or type(error).__name__})"
        )
    if "Unable to initialize backend" in text:
        return f"{text}: set JAX_PLATFORMS to a device of this machine, such as cpu"
    if "determine home directory" in text:
        return "the home folder can't be found: set HOME, or give paths without ~"
    return ""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence library logs; failures become UserErrors."""
    logger = logging.get_absl_logger()
    level, hook = logger.level, sys.unraisablehook
    logger.setLevel("CRITICAL")
    sys.unraisablehook = drop_closed_loops
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
        try:
            yield
        finally:
            sys.unraisablehook = hook
            logger.setLevel(level)


def drop_closed_loops(unraisable) -> None:
    """Drop the pages that tensorstore's threads print once orbax has given up a checkpoint."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def end_quietly() -> None:
    """While Python exits, the status is decided: a signal must not change it."""
    sys.unraisablehook = drop_closed_loops
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def enable_compile_cache() -> None:
    """Let JAX keep compiled programs between starts; a user's own settings of its cache hold.

    By default in ~/.cache/resnet_cifar, in a folder for each host, as XLA's CPU programs are made
    for one processor. A folder that can't be used costs the time to compile.
    """
    settings: dict[str, int | str] = {
        "jax_persistent_cache_min_compile_time_secs": 0,  # Initialization has many small programs.
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            folder = Path(cache, "resnet_cifar", platform.node())
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except (OSError, RuntimeError):
            return
        settings["jax_compilation_cache_dir"] = str(folder)
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
