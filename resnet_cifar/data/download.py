"""CIFAR-10 and CIFAR-100 downloaded, verified and stored by TFDS, without TensorFlow.

A subclass of TFDS's builder avoids the three places where it would import TensorFlow.
"""

import http.client
import sys
import tarfile
import threading
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_cifar.errors import UserError


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
PIXELS = 32 * 32 * 3
PROBE_SECONDS = 8


def prepare(name: str, root: Path) -> Path:
    """Let TFDS download, verify and store a data set under `root`; return its folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

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
