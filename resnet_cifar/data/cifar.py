"""CIFAR-10 and CIFAR-100 as TFDS stores them, read without TensorFlow, and a cache beside the data.

The cache loads in a fraction of a second.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from resnet_cifar.data import download
from resnet_cifar.errors import UserError

SIZES = {"train": 50_000, "test": 10_000}
ABANDONED_SECONDS = 600


def load(name: str, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [n, 32, 32, 3], uint8 [n]) of "train" or "test", prepared first if need be.

    The newest version that can be read is used, with a warning about newer ones.
    """
    try:
        folders = prepared_folders(name, data_dir) or [download.prepare(name, resolve(data_dir))]
    except OSError as error:
        raise UserError(f"the data under {resolve(data_dir)} can't be read: {error}") from error
    problems = []
    for folder in folders:
        try:
            body = read_split(folder, name, split)
            break
        except UserError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"the data in {folder} can't be read: {error}")
    else:
        raise UserError("; ".join(problems))
    if problems:
        print(f"warning: using {folder}, because {'; '.join(problems)}", file=sys.stderr)
    n = len(body) // (1 + download.PIXELS)
    labels, pixels = np.frombuffer(body, np.uint8, n), np.frombuffer(body, np.uint8, offset=n)
    return pixels.reshape(n, 32, 32, 3), labels


def read_split(folder: Path, name: str, split: str) -> bytes | memoryview:
    """Return the labels, then the pixels, of a split, from the cache if it matches the shards."""
    shards = sorted(folder.glob(f"{name}-{split}.*-of-*"))
    source = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).digest()
    cache = folder / f"{split}.resnet_cifar_cache"
    body = read_cache(cache, source)
    if body is None:
        body = read_prepared(folder, split)
        write_cache(cache, source, body, mode=shards[0].stat().st_mode & 0o666)
    return body


def class_names(name: str, data_dir: str | None) -> list[str]:
    """Return the (fine) class names of a prepared data set, in the order of the labels."""
    folder = prepared_folder(name, data_dir)
    try:
        return (folder / "label.labels.txt").read_text().split() if folder else []
    except OSError as error:
        raise UserError(
            f"the class names can't be read: {error}. Delete that folder and start again"
        ) from error


def resolve(data_dir: str | None) -> Path:
    """Return the TFDS folder: the argument, else $TFDS_DATA_DIR, else TFDS's default."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        folder = Path(given).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"the home folder in data_dir={given!r} can't be found: "
            "give the full path with --config.data_dir or TFDS_DATA_DIR"
        ) from error
    if folder.exists() and not folder.is_dir():
        raise UserError(f"data_dir={str(folder)!r} can't be read: it is not a folder")
    return folder


def prepared_folders(name: str, data_dir: str | None) -> list[Path]:
    """Return the folders of the prepared versions of a data set, the newest first."""
    root = resolve(data_dir)
    folders = prepared_versions(root / name)
    if not folders:
        check_depth(name, root)
    return folders


def prepared_versions(folder: Path) -> list[Path]:
    found = [info.parent for info in folder.glob("*/dataset_info.json")]
    found = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return sorted(found, key=lambda path: [int(n) for n in path.name.split(".")], reverse=True)


def check_depth(name: str, root: Path) -> None:
    """Raise a UserError if `root` lies inside a data set, where TFDS would download anew."""
    if (root / "dataset_info.json").exists():
        right = root.parent.parent
    elif prepared_versions(root):
        right = root.parent
    else:
        return
    raise UserError(
        f"data_dir={str(root)!r} is inside a data set: give the folder that holds {name}/, "
        f"--config.data_dir={right}"
    )


def prepared_folder(name: str, data_dir: str | None) -> Path | None:
    """Return the newest version that seems readable, else the newest, or None without any."""
    folders = prepared_folders(name, data_dir)
    return next((folder for folder in folders if seems_readable(folder, name)), None) or next(
        iter(folders), None
    )


def seems_readable(folder: Path, name: str) -> bool:
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        complete = all(any(folder.glob(f"{name}-{split}.*-of-*")) for split in SIZES)
        return complete and info["fileFormat"] == "array_record"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_prepared(folder: Path, split: str) -> bytes:
    """Return the labels, then the pixels, in the order of the original archive."""
    import tensorflow_datasets as tfds
    from PIL import Image

    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        file_format = info.get("fileFormat", "tfrecord")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'dataset_info.json'} is damaged ({error}): delete that folder"
        ) from error
    if file_format != "array_record":
        raise UserError(
            f"{folder} was prepared as {file_format}, which needs TensorFlow to be read. Prepare a "
            "second copy as array_record in another folder, such as "
            "--config.data_dir=~/tfds_array_record. To reuse an archive that you have, put it into "
            "downloads/manual there"
        )
    try:
        skip = {"image": tfds.decode.SkipDecoding()}
        records = tfds.builder_from_directory(folder).as_data_source(split, decoders=skip)  # pyright: ignore[reportCallIssue]
        examples = sorted(
            records.__getitems__(range(len(records))), key=lambda example: example["id"]
        )
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            images = [
                Image.open(io.BytesIO(example["image"]), formats=["PNG"]) for example in examples
            ]
        if len(images) != SIZES[split] or {(image.size, image.mode) for image in images} != {
            ((32, 32), "RGB")
        }:
            raise ValueError(f"it must hold {SIZES[split]:,} images of 32 x 32 pixels in colour")
        pixels = [image.tobytes() for image in images]  # Only now are they decoded.
    except Exception as error:  # TFDS, array_record and Pillow each have their own.
        raise UserError(
            f"the {split} split in {folder} is damaged ({error}): delete that folder and start "
            "again, and it is prepared from the archive"
        ) from error
    return bytes(example["label"] for example in examples) + b"".join(pixels)


# A cache holds: sha256 of the shards it was read from, sha256 of the rest, n labels, n images.
def read_cache(cache: Path, source: bytes) -> memoryview | None:
    """Return the body of a cache, or None if missing, unreadable, damaged or of other shards."""
    try:
        content = memoryview(cache.read_bytes())
    except OSError:
        return None
    body = content[64:]
    if content[32:64] != hashlib.sha256(body).digest():
        print(f"warning: {cache} is damaged and is rebuilt from the data", file=sys.stderr)
        return None
    return body if content[:32] == source else None


def write_cache(cache: Path, source: bytes, body: bytes, mode: int) -> None:
    """Write a cache atomically, with the permissions of the shards; if that fails, do without."""
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    remove_abandoned(cache)
    try:
        with part.open("wb") as file:
            file.write(source + hashlib.sha256(body).digest())
            file.write(body)
        part.chmod(mode)
        os.replace(part, cache)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        print(
            f"no cache beside the data, so the next start takes some seconds longer: {error}",
            file=sys.stderr,
        )


def remove_abandoned(cache: Path) -> None:
    """Remove what killed processes left of this cache."""
    for part in cache.parent.glob(f"{cache.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink()
