"""Images in, and everything done to them: order, augmentation, normalization, as pure functions of (seed, step)."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, UInt8

from resnet_cifar.data import synthetic
from resnet_cifar.errors import UserError

AnyArray = jax.Array | np.ndarray
RGB = tuple[float, float, float]


class Dataset(NamedTuple):
    """What a data set's name stands for."""

    num_classes: int
    sizes: dict[str, int]  # Images in "train" and "test".
    mean: RGB  # Of the train pixels in [0, 1], by channel.
    std: RGB


CIFAR_SIZES = {"train": 50_000, "test": 10_000}
GREY = (0.481, 0.481, 0.481), (0.257, 0.257, 0.257)
DATASETS = {  # The CIFAR statistics are computed over the 50,000 train images.
    "cifar10": Dataset(10, CIFAR_SIZES, (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "cifar100": Dataset(100, CIFAR_SIZES, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
    "synthetic": Dataset(10, synthetic.SIZES, *GREY),
    "synthetic100": Dataset(100, synthetic.SIZES, *GREY),
}


class Images(NamedTuple):
    """A split: uint8 pixels and their labels, in numpy or on a device."""

    images: UInt8[AnyArray, "n 32 32 3"]
    labels: Int[AnyArray, " n"]


def load_images(dataset: str, split: str, data_dir: str | None = None, *, seed: int = 0) -> Images:
    """Load one split of a data set into memory.

    Args:
      dataset: a key of `DATASETS`.
      split: a TFDS string: "train", "test", "train[:45000]", "train[90%:]". Images come in the order of the original
        archive, and slices count in it, whatever order TFDS stored them in.
      data_dir: folder of the TFDS data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      seed: of the synthetic images; CIFAR has none.

    Raises:
      UserError: the data set is not there and can't be fetched, or is damaged, or the split makes no sense.
    """
    if dataset not in DATASETS:
        raise UserError(f"dataset={dataset!r} is unknown: the choices are {', '.join(DATASETS)}")
    name, _ = parse_split(split)
    if dataset.startswith("synthetic"):
        images, labels = synthetic.make_images(DATASETS[dataset].num_classes, name, seed)
    else:
        from resnet_cifar.data import cifar

        images, labels = cifar.load(dataset, name, data_dir)
    chosen = positions(split, len(labels))
    chosen = slice(chosen.start, chosen.stop)
    return Images(images[chosen], labels[chosen].astype(np.int32))


def whereabouts(dataset: str, data_dir: str | None = None, *, seed: int = 0) -> str:
    """Say where the images of a data set come from."""
    if dataset.startswith("synthetic"):
        return f"made on the spot from seed {seed}"
    from resnet_cifar.data import cifar

    folder = cifar.prepared_folder(dataset, data_dir)
    return f"from {folder}" if folder else f"not yet in {cifar.resolve(data_dir)}"


def class_names(dataset: str, data_dir: str | None = None) -> list[str]:
    """Return the names of a data set's classes in the order of the labels."""
    if dataset.startswith("synthetic"):
        return synthetic.class_names(DATASETS[dataset].num_classes)
    from resnet_cifar.data import cifar

    return cifar.class_names(dataset, data_dir)


def parse_split(split: str) -> tuple[str, tuple[str | None, str | None]]:
    """Take "train[:45000]" apart into its name and its bounds; UserError if it is no such string."""
    match = re.fullmatch(r"(train|test)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match:
        raise UserError(
            f'the split {split!r} is unknown: use "train", "test", or a slice like "train[:45000]"'
        )
    return match[1], (match[2], match[3])


def positions(split: str, n: int) -> range:
    """Return the positions that a split string names among n images; UserError if there are none or not so many."""

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
    """Return the order in which an epoch visits n images: a permutation that depends on (key, epoch) alone."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)


def augment(
    key: Key[Array, ""], images: UInt8[AnyArray, "b h w c"], *, pad: int = 4
) -> UInt8[Array, "b h w c"]:
    """Crop each image at random out of itself with `pad` black pixels around, and mirror every second one or so."""
    b, h, w, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    top, left = jax.random.randint(crop_key, (2, b, 1), 0, 2 * pad + 1)
    flip = jax.random.bernoulli(flip_key, shape=(b, 1))

    across = jnp.arange(w)[None]
    rows, columns = top + jnp.arange(h)[None], left + jnp.where(flip, across[:, ::-1], across)
    padded = jnp.pad(jnp.asarray(images), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return padded[jnp.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalize(
    images: UInt8[AnyArray, "b h w c"], mean: RGB, std: RGB, dtype: DTypeLike = jnp.float32
) -> Float[Array, "b h w c"]:
    """Scale pixels of 0..255 to [0, 1], subtract the mean and divide by the standard deviation (both of that scale)."""
    mean_, std_ = np.array([[[mean]]], np.float32), np.array([[[std]]], np.float32)  # [1, 1, 1, c].
    return (jnp.asarray(images, jnp.float32) * (1 / (255 * std_)) - mean_ / std_).astype(dtype)
