"""The workdir of a run: ownership, locking, atomic writes."""

import contextlib
import dataclasses
import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from resnet_cifar.config import Config, with_defaults
from resnet_cifar.data import dataset_title
from resnet_cifar.errors import UserError

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

# A resumed run may change these: they do not change what is trained.
CHANGEABLE = ("data_dir", "eval_every_epochs", "checkpoint_every_epochs", "num_devices")


def check_workdir(workdir: str | Path, config: Config) -> Path:
    """Return the folder of a run, absolute; writes nothing.

    Raises:
      UserError: the folder belongs to another config, is in use, or can't be written.
    """
    folder = absolute(workdir)
    saved_config(folder, config)
    check_writable(folder)
    if (folder / "lock").exists():
        with lock(folder):
            pass
    return folder


def absolute(path: str | Path) -> Path:
    """Return an absolute path, "~" expanded; UserError if there is no home."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"{path} can't be found ({error}): give an absolute path") from error


def check_writable(folder: Path) -> None:
    """Raise a UserError if a folder can't be made, written to or locked."""
    if fcntl is None:
        raise UserError(
            f"runs lock their folders with fcntl, which {platform.system()} lacks: use Linux, "
            "macOS, or WSL on Windows"
        )
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise UserError(
            f"the workdir {folder} can't be written: {parent} is not a folder that you can write "
            "to; choose another --workdir"
        )


def saved_config(folder: Path, config: Config) -> dict[str, Any]:
    """Return the config that a workdir was last used with, or this one if it is new.

    Raises:
      UserError: the workdir holds a run that this config can't resume.
    """
    path = folder / "config.json"
    mine = with_defaults(dataclasses.asdict(config))
    try:
        saved = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): choose another --workdir") from error
    if saved is None:
        if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
            raise UserError(
                f"the workdir {folder} holds a run without its config.json: choose another "
                "--workdir"
            )
        return mine
    if not isinstance(saved, dict) or "depth" not in saved:
        raise UserError(f"{path} is not the config of a run: choose another --workdir")
    check_resumable(folder, saved, config)
    return with_defaults(saved)


def check_resumable(folder: Path, saved: dict[str, Any], config: Config) -> None:
    """Raise a UserError if a run with a saved config can't be resumed with this config."""
    saved, mine = with_defaults(saved), with_defaults(dataclasses.asdict(config))
    names = [name for name in {**mine, **saved} if saved.get(name) != mine.get(name)]
    problems = []
    for name in names:
        values = f"{name} is {saved.get(name)!r} there and {mine.get(name)!r} here"
        if name == "num_epochs":
            if config.decay != "steps":
                values += f", and decay={config.decay!r} depends on it from the first step on"
            elif config.mixup and config.mixup_off_epochs:
                values += ", and mixup_off_epochs counts from the end"
            elif mine[name] < saved[name]:
                values += ", and can only be raised"
            else:
                continue
        if name not in CHANGEABLE:
            problems.append(values)
    if problems:
        raise UserError(
            f"the workdir {folder} holds a run with another config ({'; '.join(problems)}): "
            "give this run another --workdir"
        )


def run_name(recipe: str, config: Config) -> str:
    """Name a run: resnet56-cifar10-seed0, or resnet56-cifar10-paper-seed0."""
    recipe, dataset = "" if recipe == "card" else recipe, dataset_title(config.dataset)
    start = "finetuned" if config.init_from else ""
    parts = [f"resnet{config.depth}", dataset, recipe, start, f"seed{config.seed}"]
    return "-".join(part for part in parts if part)


@contextlib.contextmanager
def claimed(folder: Path, config: Config) -> Iterator[dict[str, Any]]:
    """Make a workdir, lock it, and write its first `config.json`.

    Yields the config that it was last used with.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder) as file:
            saved = saved_config(folder, config)  # Again: loading the data took a while.
            with contextlib.suppress(OSError):  # On a full disk the lock holds without a name.
                os.ftruncate(file.fileno(), 0)
                owner = f"process {os.getpid()} on {socket.gethostname()}\n"
                os.write(file.fileno(), owner.encode())
            if not (folder / "config.json").exists():
                write_config(folder, config)
            yield saved
    except OSError as error:
        raise UserError(
            f"the workdir {folder} can't be written: {error}. The run ends here. Earlier "
            "checkpoints are intact, and the same command resumes from the newest"
        ) from error


def write_config(folder: Path, config: Config) -> None:
    """Write `config.json`, perhaps over one that differs in what may change."""
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    write_atomically(folder / "config.json", text)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[IO[str]]:
    """Hold the lock of a workdir; UserError if another process does.

    The system releases it when the process ends, however that happens.
    """
    try:
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise UserError(f"the workdir {folder} can't be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportOptionalMemberAccess]
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(
                f"the workdir {folder} is in use by {owner}: wait for that run or stop it, or "
                "give this one another --workdir"
            ) from None
        except OSError as error:
            warning = f"warning: {folder} can't be locked ({error}): start no second run in it"
            print(warning, file=sys.stderr)
        yield file


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of a file: a reader sees the old or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
