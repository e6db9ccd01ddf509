"""CIFAR-10 and CIFAR-100 through TFDS, without TensorFlow, and a cache beside the data.

TFDS downloads, verifies and stores the images. A subclass of its builder avoids the three places
where TFDS would import TensorFlow. The cache loads in a fraction of a second.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import sys
import tarfile
import threading
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_cifar.errors import UserError

PIXELS = 32 * 32 * 3


class Archive(NamedTuple):
    """What TFDS downloads."""

    file: str
    sha256: str


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    ),
    "cifar100": Archive(
        "cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
}
SIZES = {"train": 50_000, "test": 10_000}
PROBE_SECONDS = 8
ABANDONED_SECONDS = 600


def load(name: str, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [n, 32, 32, 3], uint8 [n]) of "train" or "test", prepared first if need be.

    Of several versions, the newest that can be read is used, with a warning about newer ones.
    """
    try:
        folders = prepared_folders(name, data_dir) or [prepare(name, data_dir)]
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
    n = len(body) // (1 + PIXELS)
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
    folders = versions(root / name)
    if not folders:
        check_depth(name, root)
    return folders


def versions(folder: Path) -> list[Path]:
    found = [info.parent for info in folder.glob("*/dataset_info.json")]
    found = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return sorted(found, key=lambda path: [int(n) for n in path.name.split(".")], reverse=True)


def check_depth(name: str, root: Path) -> None:
    """Raise a UserError if `root` lies inside a data set, where TFDS would download anew."""
    if (root / "dataset_info.json").exists():
        right = root.parent.parent
    elif versions(root):
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


def prepare(name: str, data_dir: str | None) -> Path:
    """Let TFDS download, verify and store a data set as array_record; return its folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    root = resolve(data_dir)
    builder = make_builder(name, root)
    check_reachable(name, root, builder._cifar_info.url)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    print(f"preparing {name} in {root}: once, some 20 seconds after the download", file=sys.stderr)
    try:
        builder.download_and_prepare()
    except (tfds.download.DownloadError, OSError) as error:
        raise UserError(f"{name} could not be fetched and prepared in {root}: {error}") from error
    except NonMatchingChecksumError as error:
        raise UserError(
            f"the archive of {name} under {root / 'downloads'} is not the original one: delete it "
            + "or replace it. TFDS says: "
            + " ".join(str(error).split("To debug")[0].split())
        ) from error
    return Path(builder.data_dir)


def make_builder(name: str, root: Path) -> Any:
    """Return TFDS's builder of a data set without the steps that need TensorFlow."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.image_classification import cifar

    base: Any = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]

    class Builder(base, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        def _split_generators(self, dl_manager):
            info = self._cifar_info
            with tarfile.open(dl_manager.download(info.url)) as archive:
                files = {
                    m.name: f.read() for m in archive if m.isreg() and (f := archive.extractfile(m))
                }
            for key, file in zip(info.label_keys, info.label_files, strict=True):
                self.info.features[key].names = files[info.prefix + file].decode().split()
            splits = {"train": info.train_files, "test": info.test_files}
            return {
                split: self._examples(split, b"".join(files[info.prefix + file] for file in names))
                for split, names in splits.items()
            }

        def _examples(self, split, data):
            keys = self._cifar_info.label_keys
            rows = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + PIXELS)
            for index, row in enumerate(rows):
                labels = dict(zip(keys, row[: len(keys)].tolist(), strict=True))
                pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
                image = Image.fromarray(np.ascontiguousarray(pixels))
                yield index, {"id": f"{split}_{index:05d}", "image": image, **labels}

    Builder.name = name
    return Builder(data_dir=root, file_format=tfds.core.FileFormat.ARRAY_RECORD)


def check_reachable(name: str, root: Path, url: str) -> None:
    """Raise a UserError if the archive is neither on the disk nor reachable.

    TFDS would retry silently for minutes.
    """
    downloads, file = root / "downloads", ARCHIVES[name].file
    stem, manual = file.removesuffix(".tar.gz"), downloads / "manual" / file
    infos = [*downloads.glob(f"*{stem}*.INFO"), *downloads.glob(f"{name}/*{stem}*.INFO")]
    if manual.is_file() or any(info.with_suffix("").is_file() for info in infos):
        return
    if problem := probe(url):
        raise UserError(
            f"{name} is not prepared in {root / name}, its archive is not in {downloads}, and "
            f"{url} can't be reached ({problem}). Fetch that file elsewhere (sha256 "
            f"{ARCHIVES[name].sha256}) and put it at {manual}, or give the folder of your TFDS "
            "data with --config.data_dir or TFDS_DATA_DIR. configs/quickstart.py needs no data"
        )


def probe(url: str) -> str:
    """Request the headers of a URL within `PROBE_SECONDS`; return the problem, or ""."""
    problems = [f"no answer within {PROBE_SECONDS} s"]

    def ask():
        try:
            urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS
            ).close()
            problems.clear()
        except (OSError, http.client.HTTPException) as error:
            problems[0] = str(error)

    # A socket's own timeout restarts with every byte, and a name lookup has none.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return "".join(problems)
