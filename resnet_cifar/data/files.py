"""Images from files: .npz, folders of pictures by class, the .npy files of CIFAR-10.1 and -10-C.

Pixels become uint8 RGB of 32 x 32, as `data.pictures` scales them.
"""

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet_cifar.data.images import Images
from resnet_cifar.data.pictures import SIDE, existing, files_below, fit, read_picture
from resnet_cifar.errors import UserError

MAX_CLASSES = 100_000
SPLITS = ("train", "test")
# Names of the arrays of images and labels in a .npz, without splits and with them.
WHOLE_KEYS = (("images", "labels"), ("x", "y"))
SPLIT_KEYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
KEYS = "images and labels, or with two splits to x_train, y_train, x_test and y_test"
DAMAGE = (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error)
LAYOUTS = (
    "a .npz with images and labels, a folder with a folder of pictures for each class, or the .npy "
    "files of CIFAR-10.1, CIFAR-10-C or CIFAR-100-C"
)


class ImageFiles(NamedTuple):
    """Labelled images, and the names of their classes in the order of the labels.

    Files without names call their classes "0", "1" and so on, up to the largest label.
    """

    images: Images
    class_names: tuple[str, ...]


def read_files(path: str | Path, split: str = "") -> ImageFiles:
    """Read labelled images from files.

    Args:
      path: one of
        - `NAME.npz` with arrays `images` and `labels`, or `x` and `y`. With two splits: `x_train`,
          `y_train`, `x_test` and `y_test`, or `train_images`, `train_labels` and so on. An array of
          strings, `class_names`, is optional.
        - a folder of folders, `CLASS/PICTURE`, or with two splits `train/CLASS/PICTURE` and
          `test/CLASS/PICTURE`. Classes are in the order of their sorted names. Pictures may lie
          deeper. Hidden files are ignored. Those of a split come in a mixed order, so that a slice
          has all classes.
        - `NAME_data.npy` with `NAME_labels.npy` beside it, as CIFAR-10.1 is published.
        - `NAME.npy` with `labels.npy` beside it: one corruption of CIFAR-10-C or CIFAR-100-C.
      split: "train" or "test" if the files have splits, else "".

    Returns:
      Images in numpy: pixels uint8 [n, 32, 32, 3], labels int32 [n].

    Raises:
      UserError: a file is missing, damaged, or not of such a layout.
    """
    path = existing(path)
    has = splits(path)
    if split and not has:
        raise UserError(f"{path} has no splits: leave out split={split!r}")
    if has and split not in has:
        raise UserError(f"{path} has splits: give train or test instead of split={split!r}")
    if path.is_dir():
        return read_folder(path, split)
    if path.suffix == ".npz":
        return read_npz(path, split)
    if path.suffix == ".npy":
        return numbered(checked(path, read_array(path), read_array(labels_path(path))))
    raise UserError(f"{path} holds no images that can be read: give {LAYOUTS}")


def splits(path: str | Path) -> tuple[str, ...]:
    """Return ("train", "test") if the files have both splits, else ()."""
    path = existing(path)
    if path.is_dir():
        both = all((path / split).is_dir() for split in SPLITS)
    else:
        names = npz_names(path) if path.suffix == ".npz" else set()
        both = all(keys_of(names, split) for split in SPLITS)
    return SPLITS if both else ()


def corruptions(path: str | Path) -> dict[str, Path]:
    """Return the files of CIFAR-10-C or CIFAR-100-C by corruption; {} if `path` is anything else.

    Args:
      path: the folder, or the file of one corruption. Each file has equally many images of the
        severities 1 to 5, in this order.
    """
    path = existing(path)
    folder = path if path.is_dir() else path.parent
    if not (folder / "labels.npy").is_file():
        return {}
    files = sorted(folder.glob("*.npy")) if path.is_dir() else [path]
    return {file.stem: file for file in files if file.suffix == ".npy" and file.stem != "labels"}


def read_folder(folder: Path, split: str) -> ImageFiles:
    """Read pictures by class; both splits have the classes of either."""
    roots = [folder / name for name in SPLITS] if split else [folder]
    classes = sorted({p.name for root in roots for p in root.iterdir() if is_class(p)})
    paths = [(path, i) for i, c in enumerate(classes) for path in files_below(folder / split / c)]
    if not paths:
        raise UserError(f"{folder / split} holds no images that can be read: give {LAYOUTS}")
    pixels = np.stack([read_or_advise(path, folder) for path, _ in paths])
    labels = np.array([label for _, label in paths], np.int32)
    order = mixed_order(pixels) if split else slice(None)
    return ImageFiles(Images(pixels[order], labels[order]), tuple(classes))


def read_or_advise(path: Path, folder: Path) -> np.ndarray:
    try:
        return read_picture(path)
    except UserError as error:
        advice = f"move it out of {folder}, or replace it with a picture"
        raise UserError(f"{error}: {advice}") from error


def mixed_order(pixels: np.ndarray) -> list[int]:
    """Return the order by the SHA-256 of each image, so that a slice has all classes."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    return sorted(range(len(digests)), key=digests.__getitem__)


def is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def read_npz(path: Path, split: str) -> ImageFiles:
    keys = keys_of(npz_names(path), split)
    if not keys:
        found = ", ".join(sorted(npz_names(path))) or "none"
        raise UserError(f"{path} has the arrays {found}: rename them to {KEYS}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = checked(path, *(arrays[key] for key in keys))
            names = arrays.get("class_names")
    except DAMAGE as error:
        raise unreadable(path, error) from error
    if names is None:
        return numbered(images)
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) <= images.labels.max():
        raise UserError(
            f"class_names in {path} must be one string for each of the "
            f"{images.labels.max() + 1} classes"
        )
    return ImageFiles(images, tuple(names.tolist()))


def npz_names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except DAMAGE as error:
        raise unreadable(path, error) from error


def keys_of(names: set[str], split: str) -> tuple[str, ...]:
    """Return the names of the images and of the labels of a split, or ()."""
    for pair in SPLIT_KEYS if split else WHOLE_KEYS:
        keys = tuple(key.format(split) for key in pair)
        if names.issuperset(keys):
            return keys
    return ()


def labels_path(path: Path) -> Path:
    """Return the file of labels that belongs to a file of images."""
    stem = path.stem.removesuffix("_data")
    labels = path.with_name("labels.npy" if stem == path.stem else f"{stem}_labels.npy")
    if not labels.is_file():
        raise UserError(f"the labels of {path} are missing: put {labels.name} beside it")
    return labels


def read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} can't be read ({error}): copy or save it again")


def checked(path: Path, pixels: np.ndarray, labels: np.ndarray) -> Images:
    """Return arrays as Images; UserError if their shapes, dtypes or values are others."""
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]  # Grey.
    shaped = pixels.ndim in (3, 4) and pixels.shape[3:] in ((), (3,)) and 0 not in pixels.shape
    if pixels.dtype != np.uint8 or not shaped:
        raise UserError(
            f"the images in {path} are {pixels.dtype}{list(pixels.shape)}: they must be uint8 "
            "[n, height, width, 3] from 0 to 255, in RGB"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        raise UserError(
            f"the labels of {path} are {labels.dtype}{list(labels.shape)}: they must be integers, "
            f"one for each of the {len(pixels):,} images"
        )
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise UserError(
            f"the labels of {path} are {labels.min()} to {labels.max()}: they must be class "
            f"numbers from 0 on, below {MAX_CLASSES:,}"
        )
    if pixels.shape[1:] != (SIDE, SIDE, 3):
        pixels = np.stack([fit(Image.fromarray(image)) for image in pixels])
    return Images(pixels, labels.astype(np.int32))


def numbered(images: Images) -> ImageFiles:
    return ImageFiles(images, tuple(str(i) for i in range(int(images.labels.max()) + 1)))
