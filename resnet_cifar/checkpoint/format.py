"""What a checkpoint holds, and how to read one: nothing here writes, moves or deletes a file.

A checkpoint is a folder `<step>/` with two items that orbax writes: `state/`, the arrays, and
`metadata/`, one JSON file with the config, the preprocessing, a SHA-256 of every array and one of
the metadata itself (orbax restores flipped bits without complaint).
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_cifar.errors import UserError

FORMATS = (1, 2)  # 1 was saved at the end of an epoch only: no sums, and no seal.


class Metadata(TypedDict, total=False):
    """The JSON of a checkpoint. Old ones may lack all but `format` and `sha256`."""

    format: int
    config: dict[str, Any]  # The fields of `Config`.
    preprocessing: dict[str, list[float]]  # `mean` and `std` of `normalize`, by channel.
    class_names: list[str]  # In the order of the labels.
    images: dict[str, Any]  # One's own data set: `sha256`, and the size of each split.
    init_from: dict[str, Any]  # The trained weights that the run began with: see `finetune`.
    dtype: str  # The dtype of the activations.
    kernels: str  # Whose kernels compute the convolutions: XLA's or the native ones.
    device: str
    XLA_FLAGS: str
    settings: dict[str, str]  # JAX's own settings that differ from its defaults.
    versions: dict[str, str]
    sums: dict[str, float]  # Metrics summed over the epoch in progress.
    validation_accuracy: float | None
    sha256: dict[str, str]  # By the path of the array, "params/stem_conv/kernel".
    seal: str  # SHA-256 of all the other metadata.


class Checkpoint(NamedTuple):
    """A checkpoint whose digests have been verified: arrays on the host, by path."""

    metadata: Metadata
    arrays: dict[str, np.ndarray]

    def tree(self, like: Any) -> Any:
        """Arrange the arrays like a tree of arrays or `ShapeDtypeStruct`s.

        Raises:
          UserError: the tree has other paths, shapes or dtypes than the checkpoint.
        """
        paths, structure = jax.tree_util.tree_flatten_with_path(like)
        names = [path_name(path) for path, _ in paths]
        wanted = {name: signature(leaf) for name, (_, leaf) in zip(names, paths, strict=True)}
        found = {name: signature(array) for name, array in self.arrays.items()}
        if differing := sorted(n for n in wanted | found if wanted.get(n) != found.get(n)):
            name = differing[0]
            raise UserError(
                f"the checkpoint does not fit this network and optimizer: {name} is "
                f"{found.get(name, 'missing')} in the checkpoint and {wanted.get(name, 'absent')} "
                f"here ({len(differing)} arrays differ). Was it saved by another version, or with "
                "JAX_ENABLE_X64? Choose another --workdir"
            )
        return jax.tree_util.tree_unflatten(structure, [self.arrays[name] for name in names])


class Damaged(Exception):
    """What is wrong with a checkpoint, to be printed after its path."""


def read(folder: Path) -> Checkpoint:
    """Read one checkpoint, `<workdir>/checkpoints/<step>`, and verify its digests.

    Raises:
      Damaged: it is not, bit for bit, what was saved.
      UserError: this version does not know its format.
    """
    metadata = read_metadata(folder)
    try:
        with accepted_path(folder) as path:
            handler = ocp.StandardCheckpointHandler()
            stored = handler.metadata(path / "state")  # pyright: ignore[reportArgumentType]
            blank = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), stored.tree)
            arrays = handler.restore(path / "state", args=ocp.args.StandardRestore(blank))  # pyright: ignore[reportArgumentType]
            arrays = by_path(arrays)
    except Exception as error:  # Orbax raises many types, a bare Exception among them.
        raise Damaged(f"can't be read ({first_line(error)})") from error
    if metadata.get("sha256") != digests(arrays):
        raise Damaged("is damaged: its arrays are not those that were saved")
    return Checkpoint(metadata, arrays)


def read_metadata(folder: Path) -> Metadata:
    """Read the metadata of one checkpoint; raises as `read` does."""
    try:
        metadata = json.loads(metadata_file(folder).read_text())
        version, whole = metadata["format"], metadata.get("seal") == seal(metadata)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"can't be read ({first_line(error)})") from error
    if version != 1 and not whole:
        raise Damaged("is damaged: its metadata is not what was saved")
    if version not in FORMATS:
        raise UserError(
            f"the checkpoint {folder} has format {version}; this version of resnet_cifar reads "
            f"formats {' and '.join(map(str, FORMATS))}: install the version that wrote it"
        )
    return metadata


def metadata_file(folder: Path) -> Path:
    return folder / "metadata" / "metadata"


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a `checkpoints` folder, ascending."""
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def accepted_path(folder: Path) -> Iterator[Path]:
    r"""Give a folder a name that orbax can read: it takes "[...]" for a pattern and "\" for "/"."""
    folder = folder.absolute()
    if not re.search(r"[\[\]\\]", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="resnet_cifar-") as alias:
        link = Path(alias, "alias")
        os.symlink(folder, link)
        try:
            yield link
        finally:
            link.unlink()  # Or the folder behind it would be cleaned up.


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a tree by path, "params/stem_conv/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def path_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def signature(array: Any) -> str:
    return f"{np.dtype(array.dtype)}{list(array.shape)}"


def digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Return the SHA-256 of each array's dtype, shape and bytes."""
    return {
        name: hashlib.sha256(
            f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
        ).hexdigest()
        for name, array in arrays.items()
    }


def seal(metadata: dict[str, Any]) -> str:
    """Return the SHA-256 of the metadata without its seal."""
    content = {name: value for name, value in metadata.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_line(error: Exception) -> str:
    """Return what an error says, without the pages that tensorstore adds."""
    return str(error).partition("\n")[0].partition(" [tensorstore_spec")[0] or repr(error)
