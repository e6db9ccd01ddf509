"""The Hugging Face hub: push a folder that `export` wrote, and fetch one."""

import re
from pathlib import Path
from typing import Any

from resnet_cifar.errors import UserError

SCHEME = "hf://"


def push(folder: Path, repository: str, hub: Any = None) -> str:
    """Create a public model repository if there is none, upload a folder, and return its address.

    Args:
      folder: with `model.safetensors`, `config.json` and `README.md`.
      repository: USER/NAME.
      hub: has the methods of `huggingface_hub.HfApi`, its default.

    Raises:
      UserError: huggingface_hub is not installed, or the hub refuses.
    """
    check_name(repository)
    hub = hub or client()
    try:
        hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=["model.safetensors", "config.json", "README.md"],
            commit_message="Upload a network of resnet_cifar",
        )
    except Exception as error:  # The client and its HTTP library each have their own.
        raise UserError(
            f"{SCHEME}{repository} can't be written: {reason(error)}. Log in with `hf auth login` "
            "as a user who may write there, and run the command again"
        ) from error
    return f"{SCHEME}{repository}"


def fetch(address: str, hub: Any = None) -> Path:
    """Download "hf://USER/NAME", unless it is in the hub's cache; return the local folder.

    Raises:
      UserError: huggingface_hub is not installed, there is no such repository, or it has no
        `model.safetensors`.
    """
    repository = address.removeprefix(SCHEME)
    check_name(repository)
    hub = hub or client()
    try:
        patterns = ["model.safetensors", "config.json"]
        folder = Path(hub.snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"{address} can't be fetched: {reason(error)}. Check the name and the connection; a "
            "private repository needs `hf auth login`"
        ) from error
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{address} has no model.safetensors: it is no export of resnet_cifar")
    return folder


def check_push(repository: str, form: str) -> None:
    """Raise a UserError unless this export can be pushed to this repository, before any work."""
    check_name(repository)
    if form != "safetensors":
        raise UserError(f"--push={repository} takes --format=safetensors, not {form}")


def check_name(repository: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise UserError(f"{repository!r} is no repository of the hub: give USER/NAME")


def client() -> Any:
    try:
        from huggingface_hub import HfApi  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "the Hugging Face hub needs the package huggingface_hub: install it with "
            "pip install huggingface_hub"
        ) from error
    return HfApi(library_name="resnet_cifar")


def reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
