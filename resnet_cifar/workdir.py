"""The folder of a run: whose it is, and writing to it."""

import dataclasses
import json
import os
from pathlib import Path

from resnet_cifar.config import Config
from resnet_cifar.errors import UserError


def check_workdir(workdir: str | Path, config: Config) -> Path:
    """Return the folder of a run, absolute; UserError if another run's files are there. Writes nothing."""
    folder = Path(workdir).expanduser().absolute()
    try:
        saved = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"the workdir {folder} holds a config.json that can't be read: {error}") from error
    if saved is not None and not isinstance(saved, dict):
        raise UserError(f"the workdir {folder} holds a config.json that is not a config: choose another workdir")
    if saved is None:
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise UserError(f"the workdir {folder} can't be written: {parent} is not a folder that you may write to")
        if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
            raise UserError(
                f"the workdir {folder} holds files of a run without its config.json: choose another workdir"
            )
        return folder
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    differences = [
        f"{name} is {saved.get(name, 'missing')!r} there and {mine.get(name, 'missing')!r} here"
        for name in [*mine, *(saved.keys() - mine.keys())]
        if name != "data_dir" and saved.get(name) != mine.get(name)
    ]
    if differences:
        raise UserError(
            f"the workdir {folder} holds a run with another config ({'; '.join(differences)}): "
            "give this run another --workdir"
        )
    return folder


def claim_workdir(folder: Path, config: Config) -> None:
    """Make the folder of a run and write its `config.json`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"the workdir {folder} can't be written: {error}") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step: a reader sees the old or the new, never a part."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)
