"""Loading, slicing, ordering, augmenting and normalizing images."""

import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, UInt8

from resnet_cifar.data import cifar, synthetic
from resnet_cifar.errors import UserError

AnyArray = jax.Array | np.ndarray
RGB = tuple[float, float, float]


class Dataset(NamedTuple):
    """Classes, sizes and pixel statistics of a data set."""

    num_classes: int
    sizes: dict[str, int]  # Number of images in "train" and "test".
    mean: RGB  # Mean of the train pixels in [0, 1], by channel.
    std: RGB  # Their standard deviation.
    sha256: str = ""  # Digest of one's own images. The others are known by name.


GREY = (0.481, 0.481, 0.481), (0.257, 0.257, 0.257)
DATASETS = {  # The CIFAR statistics are computed over the 50,000 train images.
    "cifar10": Dataset(10, cifar.SIZES, (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "cifar100": Dataset(100, cifar.SIZES, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
    "synthetic": Dataset(10, synthetic.SIZES, *GREY),
    "synthetic100": Dataset(100, synthetic.SIZES, *GREY),
}


class Images(NamedTuple):
    """Pixels (RGB, 0..255) and class labels of a split, in numpy or on a device."""

    images: UInt8[AnyArray, "n 32 32 3"]
    labels: Int[AnyArray, " n"]


def load_images(dataset: str, split: str, data_dir: str | None = None, *, seed: int = 0) -> Images:
    """Load one split, or a slice of it, into memory.

    Args:
      dataset: "cifar10", "cifar100", "synthetic", "synthetic100", or the path of your own images:
        a folder or `.npz` that `data.files.read_files` reads, with a train and a test split.
      split: a TFDS string: "train", "test", "train[:45000]", "train[90%:]". Images come in the
        order of the original archive, in which slices count, however TFDS stored them.
      data_dir: TFDS folder. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      seed: seed of the synthetic images. CIFAR ignores it.

    Returns:
      `Images` in numpy: pixels uint8 [n, 32, 32, 3] in RGB, labels int32 [n].

    Raises:
      UserError: the data is missing and can't be downloaded, or is damaged; or the data set or
        the split is unknown or empty.

    Example:
      >>> images, labels = load_images("synthetic", "test[:100]")
      >>> images.shape, labels.dtype
      ((100, 32, 32, 3), dtype('int32'))
    """
    name, _ = parse_split(split)
    images, labels = load_split(dataset, name, data_dir, seed=seed)
    chosen = positions(split, len(labels))
    return Images(*(array[chosen.start : chosen.stop] for array in (images, labels)))


def load_split(dataset: str, name: str, data_dir: str | None = None, *, seed: int = 0) -> Images:
    """Load the whole of "train" or "test", for callers that slice by `positions` themselves."""
    facts = find_dataset(dataset)
    if dataset not in DATASETS:
        from resnet_cifar.data import own

        return own.read(dataset).splits[name]
    if dataset.startswith("synthetic"):
        images, labels = synthetic.make_images(facts.num_classes, name, seed)
    else:
        images, labels = cifar.load(dataset, name, data_dir)
    return Images(images, labels.astype(np.int32))


def find_dataset(dataset: str) -> Dataset:
    """Return the facts of a data set, by name or by the path of one's own images.

    Raises:
      UserError: there is no such name or path, or the images can't be read.
    """
    if dataset in DATASETS:
        return DATASETS[dataset]
    if not is_dataset(dataset):
        choices = ", ".join(DATASETS)
        raise UserError(f"dataset={dataset!r} is unknown: the choices are {choices}, or a path")
    from resnet_cifar.data import own

    return own.read(dataset).facts


def is_dataset(dataset: str) -> bool:
    """Return whether this is the name of a data set or an existing path."""
    try:
        return dataset in DATASETS or (dataset != "" and Path(dataset).expanduser().exists())
    except (OSError, RuntimeError, ValueError):
        return False


def dataset_title(dataset: str) -> str:
    """Return the name of a data set, or the last part of its path."""
    if dataset in DATASETS:
        return dataset
    return Path(dataset).expanduser().absolute().name.removesuffix(".npz")


def whereabouts(dataset: str, data_dir: str | None = None, *, seed: int = 0) -> str:
    """Return where the images of a data set come from, for the header of a run."""
    if dataset not in DATASETS:
        facts, path = find_dataset(dataset), Path(dataset).expanduser().absolute()
        return f"{facts.num_classes} classes from {path} (sha256 {facts.sha256[:12]})"
    if dataset.startswith("synthetic"):
        return f"generated from seed {seed}"
    folder = cifar.prepared_folder(dataset, data_dir)
    return f"from {folder}" if folder else f"not yet in {cifar.resolve(data_dir)}"


def shared_images(dataset: str) -> str:
    """Say how many of one's own test images are also train images; empty if none is."""
    if dataset in DATASETS:
        return ""
    from resnet_cifar.data import own

    found = own.read(dataset)
    text = (
        f"{found.shared:,} of the {found.facts.sizes['test']:,} test images are also train images"
    )
    return f"{text}: the test accuracy will be too high" if found.shared else ""


def class_names(dataset: str, data_dir: str | None = None) -> list[str]:
    """Return the class names in the order of the labels."""
    if dataset not in DATASETS:
        from resnet_cifar.data import own

        return list(own.read(dataset).class_names)
    if dataset.startswith("synthetic"):
        return synthetic.class_names(DATASETS[dataset].num_classes)
    return cifar.class_names(dataset, data_dir)


def parse_split(split: str) -> tuple[str, tuple[str | None, str | None]]:
    """Parse "train[:45000]" into its name and bounds; UserError if malformed."""
    match = re.fullmatch(r"(train|test)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match:
        raise UserError(
            f'the split {split!r} is unknown: use "train", "test", or a slice like "train[:45000]"'
        )
    return match[1], (match[2], match[3])


def positions(split: str, n: int) -> range:
    """Return the range of a split string among n images; UserError if empty or out of bounds."""

    def position(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        at = round(int(bound[:-1]) * n / 100) if bound.endswith("%") else int(bound)
        if abs(at) > n:
            raise UserError(f"the split {split!r} reaches beyond the {n:,} images that there are")
        return at % n if at < 0 else at

    _, (start, stop) = parse_split(split)
    chosen = range(position(start, 0), position(stop, n))
    if not chosen:
        raise UserError(f"the split {split!r} holds no images")
    return chosen


def epoch_order(key: Key[Array, ""], epoch: int | Int[Array, ""], n: int) -> Int[Array, " n"]:
    """Return the permutation of n images for an epoch, a function of (key, epoch)."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(n, dtype=jnp.int32))


def augment(
    key: Key[Array, ""], images: UInt8[AnyArray, "b h w c"], *, pad: int = 4
) -> UInt8[Array, "b h w c"]:
    """Random crop after zero-padding by `pad` pixels, then random horizontal flip.

    Each image gets its own offset, uniform over the (2 * pad + 1)^2 crops, and flips with
    probability 1/2. The result is a function of (key, images), as in He et al. 2015, section 4.2.

    Example:
      >>> augment(jax.random.key(0), np.zeros((8, 32, 32, 3), np.uint8)).shape
      (8, 32, 32, 3)
    """
    b, h, w, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    top, left = jax.random.randint(crop_key, (2, b, 1), 0, 2 * pad + 1, jnp.int32)
    flip = jax.random.bernoulli(flip_key, jnp.float32(0.5), (b, 1))

    across = jnp.arange(w, dtype=jnp.int32)[None]
    rows, columns = (
        top + jnp.arange(h, dtype=jnp.int32)[None],
        left + jnp.where(flip, across[:, ::-1], across),
    )
    padded = jnp.pad(jnp.asarray(images), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    # By vmap, so that several devices crop their own part of the batch.
    return jax.vmap(lambda image, y, x: image[y[:, None], x])(padded, rows, columns)


def normalize(
    images: UInt8[AnyArray, "b h w c"], mean: RGB, std: RGB, dtype: DTypeLike = jnp.float32
) -> Float[Array, "b h w c"]:
    """Return `(images / 255 - mean) / std`, by channel, computed in float32 and cast to `dtype`.

    `mean` and `std` are those of pixels scaled to [0, 1].

    Example:
      >>> white = np.full((1, 1, 1, 3), 255, np.uint8)
      >>> normalize(white, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).ravel().tolist()
      [2.0, 2.0, 2.0]
    """
    mean_, std_ = np.array([[[mean]]], np.float32), np.array([[[std]]], np.float32)  # [1, 1, 1, c].
    return (jnp.asarray(images, jnp.float32) * (1 / (255 * std_)) - mean_ / std_).astype(dtype)
