"""Trained weights: a network with all that its use takes, and the file that holds it.

The file is safetensors: float32 arrays named by path, "params/stem_conv/kernel", and metadata of
one JSON string each: `format`, `config`, `model`, `preprocessing`, `class_names`, and `sha256`, the
digest of the arrays and the other metadata.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, UInt8

from resnet_cifar.data import AnyArray, normalize
from resnet_cifar.data.images import RGB
from resnet_cifar.errors import UserError
from resnet_cifar.models import ResNet
from resnet_cifar.variables import model_of

FORMAT = 1


class Preprocessing(NamedTuple):
    """What was done to the images in training: `preprocessing(images)` are the network's inputs.

    Attributes:
      mean: of pixels scaled to [0, 1], by channel in RGB.
      std: likewise.

    Example:
      >>> preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
      >>> preprocessing(np.full((1, 1, 1, 3), 255, np.uint8)).ravel().tolist()
      [2.0, 2.0, 2.0]
    """

    mean: RGB
    std: RGB

    def __call__(self, images: UInt8[AnyArray, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Return `(images / 255 - mean) / std` in float32."""
        return normalize(images, self.mean, self.std)


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained network; `model, variables, preprocessing = pretrained` unpacks it.

    Attributes:
      model: computes in float32; `model.clone(dtype=jnp.bfloat16)` does so in bfloat16.
      variables: `{"params": ..., "batch_stats": ...}`, float32, in numpy if loaded.
      preprocessing: of uint8 images.
      class_names: in the order of the labels; "0", "1", ... if unknown.
      config: the fields of the `Config` it was trained by; empty if unknown.
      source: the path it was loaded from.
    """

    model: ResNet
    variables: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    config: dict[str, Any]
    source: str

    def __iter__(self):
        """Unpack the three parts that inference takes."""
        return iter((self.model, self.variables, self.preprocessing))

    def logits(self, images: AnyArray, batch_size: int = 500) -> Float[np.ndarray, "n classes"]:
        """Return the float32 logits of images, computed batch by batch.

        The last batch is padded, so that a size of images is compiled once.

        Args:
          images: uint8 [n, h, w, 3], RGB from 0 to 255.
          batch_size: number of images that are computed at once.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(
                f"images are {images.dtype}{list(images.shape)}: they must be uint8 [n, h, w, 3], "
                "RGB from 0 to 255"
            )
        n = len(images)
        size = min(batch_size, 1 << max(0, n - 1).bit_length())  # Few sizes for small n, too.
        variables, parts = jax.device_put(self.variables), []
        for start in range(0, n, size):
            batch = np.asarray(images[start : start + size])
            batch = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
            parts.append(compute_logits(self.model, self.preprocessing, variables, batch))
        empty = np.zeros((0, self.model.num_classes), np.float32)
        return np.concatenate([empty, *map(np.asarray, parts)])[:n]

    def probabilities(
        self, images: AnyArray, batch_size: int = 500
    ) -> Float[np.ndarray, "n classes"]:
        """Return the softmax of `logits`, float32; arguments as there."""
        return np.asarray(jax.nn.softmax(self.logits(images, batch_size)))


@partial(jax.jit, static_argnums=(0, 1))
def compute_logits(
    model: ResNet, preprocessing: Preprocessing, variables: Any, images: UInt8[AnyArray, "b h w 3"]
) -> Float[Array, "b classes"]:
    with jax.default_matmul_precision("highest"):  # By default, GPUs round float32 to 10 bits.
        return model.apply(variables, preprocessing(images), train=False)  # pyright: ignore[reportReturnType]


def save_weights(path: str | Path, pretrained: Pretrained) -> None:
    """Write a safetensors file, atomically; UserError if it can't be written."""
    path, content = Path(path), weights_bytes(pretrained)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error}): choose another place") from error


def weights_bytes(pretrained: Pretrained) -> bytes:
    """Return the content of a safetensors file; equal weights give equal bytes."""
    from safetensors.numpy import save

    arrays = {
        name: np.ascontiguousarray(array)
        for name, array in flatten_dict(pretrained.variables, sep="/").items()
    }
    model = model_of(arrays, "these variables")
    metadata = {
        "format": FORMAT,
        "config": pretrained.config,
        "model": {n: getattr(model, n) for n in ("depth", "num_classes", "width", "shortcut")},
        "preprocessing": pretrained.preprocessing._asdict(),
        "class_names": pretrained.class_names,
    }
    metadata = {name: json.dumps(value) for name, value in metadata.items()}
    metadata["sha256"] = json.dumps(digest(arrays, metadata))
    return sort_header(save(arrays, metadata))


def sort_header(data: bytes) -> bytes:
    """Sort the header of a safetensors file, so that equal weights give equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def read_weights(path: str | Path) -> Pretrained:
    """Read a file of `save_weights` and verify its digest.

    Raises:
      UserError: it can't be read, is damaged, or is not such a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} can't be read as safetensors ({error}): it is damaged, or another kind of "
            "file. `python -m resnet_cifar import_torch` reads the checkpoints of PyTorch"
        ) from error
    saved = parse_metadata(path, metadata)
    if saved["format"] != FORMAT:
        raise UserError(
            f"{path} has format {saved['format']!r}; this version of resnet_cifar reads {FORMAT}: "
            "install the version that wrote it"
        )
    if saved["sha256"] != digest(arrays, metadata):
        raise UserError(f"{path} is damaged: its content is not what was saved. Copy it again")
    return assemble(path, arrays, saved["preprocessing"], saved["class_names"], saved["config"])


def parse_metadata(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        names = ("format", "config", "preprocessing", "class_names", "sha256")
        return {name: json.loads(metadata[name]) for name in names}
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} was not written by resnet_cifar, as its metadata lacks {error}: "
            "`python -m resnet_cifar import_torch` reads weights in PyTorch's layout"
        ) from error


def assemble(
    path: Any,
    arrays: dict[str, np.ndarray],
    preprocessing: Any,
    class_names: Any,
    config: dict[str, Any],
) -> Pretrained:
    """Build a `Pretrained` of arrays by path and of what JSON made of the rest.

    Raises:
      UserError: they don't fit each other; the sentence begins with `path`.
    """
    model = model_of(arrays, path)
    names = tuple(class_names or map(str, range(model.num_classes)))
    if len(names) != model.num_classes:
        raise UserError(
            f"{path} names {len(names)} classes, but its network has {model.num_classes}"
        )
    return Pretrained(
        model=model,
        variables=unflatten_dict(arrays, sep="/"),
        preprocessing=as_preprocessing(path, preprocessing),
        class_names=names,
        config=config,
        source=str(path),
    )


def as_preprocessing(path: Any, saved: Any) -> Preprocessing:
    try:
        mean, std = (tuple(float(x) for x in saved[name]) for name in ("mean", "std"))
        if not (len(mean) == len(std) == 3 and min(std) > 0 and np.isfinite(mean + std).all()):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} lacks its preprocessing, a mean and a std for each of three channels, without "
            "which the network can't be used: train again with this version"
        ) from error
    return Preprocessing(mean, std)  # pyright: ignore[reportArgumentType]


def digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return one SHA-256 over all arrays and the metadata but `sha256`."""
    total = hashlib.sha256()
    for name, text in sorted(metadata.items()):
        if name != "sha256":
            total.update(json.dumps([name, text]).encode())
    for name, array in sorted(arrays.items()):
        total.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        total.update(array.tobytes())
    return total.hexdigest()
