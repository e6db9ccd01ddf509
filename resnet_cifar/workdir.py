"""The folder of a run: whose it is, who works in it, and writing to it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from resnet_cifar.config import Config
from resnet_cifar.errors import UserError

# What a resumed run may change: none of it is part of what a step computes.
CHANGEABLE = (
    "data_dir",
    "eval_every_epochs",
    "checkpoint_every_epochs",
)  # And num_epochs, upwards.
LATER = {"decay": "steps", "nesterov": False}  # What runs did before they had these fields.


def check_workdir(workdir: str | Path, config: Config) -> Path:
    """Return the folder of a run, absolute; UserError if it is not for this one, or in use. Writes nothing."""
    folder = Path(workdir).expanduser().absolute()
    check_config(folder, config)
    check_writable(folder)
    if (folder / "lock").exists():
        with lock(folder):
            pass
    return folder


def check_writable(folder: Path) -> None:
    """Raise a UserError if a folder is not there and can't be made, or is there and can't be written to."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise UserError(
            f"the workdir {folder} can't be written: {parent} is not a folder that you may write to"
        )


def check_config(folder: Path, config: Config) -> None:
    """Raise a UserError if a folder holds the run of another config."""
    try:
        saved = (
            json.loads((folder / "config.json").read_text())
            if (folder / "config.json").exists()
            else None
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"the workdir {folder} holds a config.json that can't be read: {error}"
        ) from error
    if saved is not None and not isinstance(saved, dict):
        raise UserError(
            f"the workdir {folder} holds a config.json that is not a config: choose another workdir"
        )
    if saved is None and ((folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists()):
        raise UserError(
            f"the workdir {folder} holds files of a run without its config.json: choose another workdir"
        )
    if saved is not None:
        check_same(folder, saved, config)


def check_same(folder: Path, saved: dict[str, Any], config: Config) -> None:
    """Raise a UserError if the saved config of a folder is another one."""
    if problem := differences(saved, json.loads(json.dumps(dataclasses.asdict(config)))):
        raise UserError(
            f"the workdir {folder} holds a run with another config ({problem}): give this one another --workdir"
        )


def differences(saved: dict[str, Any], mine: dict[str, Any]) -> str:
    """Say which fields of two configs differ and must not; empty if none."""
    saved = LATER | saved
    names = [
        name for name in [*mine, *(saved.keys() - mine.keys())] if saved.get(name) != mine.get(name)
    ]
    longer = (mine.get("num_epochs") or 0) >= (saved.get("num_epochs") or 0)
    return "; ".join(
        f"{name} is {saved.get(name, 'missing')!r} there and {mine.get(name, 'missing')!r} here"
        + (", and can only be raised" if name == "num_epochs" else "")
        for name in names
        if name not in CHANGEABLE and not (name == "num_epochs" and longer)
    )


def run_name(recipe: str, config: Config) -> str:
    """Say what runs: resnet56-cifar10-seed0, or resnet56-cifar10-paper-seed0."""
    recipe = "" if recipe == "card" else recipe
    return "-".join(
        filter(None, [f"resnet{config.depth}", config.dataset, recipe, f"seed{config.seed}"])
    )


@contextlib.contextmanager
def claimed(folder: Path, config: Config) -> Iterator[None]:
    """Make the folder of a run, lock it for as long as the context lasts, and write its first `config.json`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder) as file:
            check_config(folder, config)  # Once more: data has been loaded since.
            with contextlib.suppress(
                OSError
            ):  # On a full disk the lock holds, but nobody can be told whose it is.
                os.ftruncate(file.fileno(), 0)
                os.write(
                    file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode()
                )
            if not (folder / "config.json").exists():
                write_config(folder, config)
            yield
    except OSError as error:
        raise UserError(
            f"the workdir {folder} can't be written: {error}. The run ends here; checkpoints from before are as they "
            "were, and the same command goes on from the newest"
        ) from error


def write_config(folder: Path, config: Config) -> None:
    """Write a `config.json`, perhaps over one that differs in what may change."""
    write_atomically(
        folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    )


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[IO[str]]:
    """Hold the lock of a folder; UserError if another process does. The system lets go of it when a process ends."""
    try:
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise UserError(f"the workdir {folder} can't be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"the workdir {folder} is in use by {file.read().strip() or 'another process'}: wait for that run or "
                "stop it, or give this one another --workdir"
            ) from None
        except OSError as error:
            print(
                f"warning: {folder} can't be locked ({error}): start no second run in it",
                file=sys.stderr,
            )
        yield file


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step: a reader sees the old or the new, never a part."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
