"""Your own images as a data set: its facts are computed from the files, once."""

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_cifar.data.files import SPLITS, read_files, splits
from resnet_cifar.data.images import RGB, Dataset, Images
from resnet_cifar.data.pictures import existing, files_below
from resnet_cifar.errors import UserError


class Own(NamedTuple):
    """Images of one's own.

    Attributes:
      facts: classes, sizes, statistics and digest.
      class_names: in the order of the labels.
      splits: "train" and "test".
      shared: number of test images that are also in "train", pixel by pixel.
    """

    facts: Dataset
    class_names: tuple[str, ...]
    splits: dict[str, Images]
    shared: int


def read(path: str | Path) -> Own:
    """Read a folder or an `.npz` with a train and a test split; again only if a file has changed.

    Raises:
      UserError: a split is missing, there are fewer than two classes, or `read_files` says so.
    """
    path = existing(path).absolute()
    files = files_below(path) if path.is_dir() else [path]
    stats = ((file, file.stat()) for file in files)
    return _read(path, tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@functools.lru_cache(maxsize=1)
def _read(path: Path, state: tuple) -> Own:
    del state
    if not splits(path):
        raise UserError(
            f"{path} has no train and test images to train with: give a folder with "
            "train/CLASS/PICTURE and test/CLASS/PICTURE, or an .npz with x_train, y_train, x_test "
            "and y_test"
        )
    found = {split: read_files(path, split) for split in SPLITS}
    names = max((files.class_names for files in found.values()), key=len)
    if len(names) < 2:
        raise UserError(f"{path} has one class: give images of two or more")
    images = {split: files.images for split, files in found.items()}
    sizes = {split: len(own.labels) for split, own in images.items()}
    mean, std = pixel_statistics(path, np.asarray(images["train"].images))
    facts = Dataset(len(names), sizes, mean, std, digest(images, names))
    return Own(facts, names, images, count_shared(images))


def pixel_statistics(path: Path, pixels: np.ndarray) -> tuple[RGB, RGB]:
    """Return mean and standard deviation of pixels in [0, 1], by channel."""
    counts = [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)]
    values = np.arange(256) / 255
    means = [float(np.average(values, weights=count)) for count in counts]
    stds = [
        float(np.average((values - mean) ** 2, weights=count)) ** 0.5
        for count, mean in zip(counts, means, strict=True)
    ]
    if not all(stds):
        raise UserError(f"the train images in {path} all have the same value in a colour channel")
    return rgb(means), rgb(stds)


def rgb(values: list[float]) -> RGB:
    red, green, blue = values
    return red, green, blue


def digest(images: dict[str, Images], names: tuple[str, ...]) -> str:
    """Return the SHA-256 of the class names, and of labels and pixels of each split."""
    sha256 = hashlib.sha256("\0".join(names).encode())
    for split in SPLITS:
        sha256.update(f"\0{split} {len(images[split].labels)}".encode())
        sha256.update(np.ascontiguousarray(images[split].labels).data)
        sha256.update(np.ascontiguousarray(images[split].images).data)
    return sha256.hexdigest()


def count_shared(images: dict[str, Images]) -> int:
    """Return how many test images are also train images, pixel by pixel."""
    train = {image.tobytes() for image in np.asarray(images["train"].images)}
    return sum(image.tobytes() in train for image in np.asarray(images["test"].images))
