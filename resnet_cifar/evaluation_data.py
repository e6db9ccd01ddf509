"""The images that networks are evaluated on, with labels in the order of the networks' classes."""

from collections.abc import Sequence

import numpy as np

from resnet_cifar.data import (
    DATASETS,
    Images,
    class_names,
    is_dataset,
    load_images,
    parse_split,
    positions,
)
from resnet_cifar.data.files import read_files, splits
from resnet_cifar.errors import UserError
from resnet_cifar.pretrained import Pretrained


def read_data(
    networks: Sequence[Pretrained], data: str = "", split: str = "test", data_dir: str = ""
) -> tuple[str, Images]:
    """Return a title, and images with labels in the order of the networks' classes.

    Args:
      networks: of the same classes.
      data: a data set, or files as `read_files` takes; by default what they were trained on.
      split: as `load_images` takes it, of files too. Files without splits count as "test".
      data_dir: TFDS folder; by default that of the first network's config.

    Raises:
      UserError: the images are missing, or their classes are not those of the networks.
    """
    data, config = data or trained_on(networks, data_dir), networks[0].config
    if data in DATASETS:
        folder = data_dir or config.get("data_dir") or None
        seed = config.get("seed", 0)
        images = load_images(data, split, folder, seed=seed)
        names = tuple(class_names(data, folder)) or unnamed(DATASETS[data].num_classes)
        title = f"{data} {split}" + f" of seed {seed}" * data.startswith("synthetic")
    else:
        images, names = read_split(data, split)
        title = f"{data} {split}" if splits(data) or split != "test" else data
    return title, relabelled(title, images, names, networks)


def trained_on(networks: Sequence[Pretrained], data_dir: str = "") -> str:
    """Return the one data set that networks were trained on, as far as they say."""
    found = sorted({dataset_of(network, data_dir) for network in networks} - {""})
    if not found:
        raise UserError(
            f"{networks[0].source} does not say what it was trained on: give the images, such as "
            "--data=cifar10"
        )
    if len(found) > 1:
        raise UserError(
            f"the networks were trained on {' and '.join(found)}: give the images, such as "
            f"--data={found[0]}"
        )
    return found[0]


def dataset_of(network: Pretrained, data_dir: str) -> str:
    """Return the data set of a network's config, or that with the same class names, or ""."""
    named = (name for name in DATASETS if tuple(class_names(name, data_dir)) == network.class_names)
    return network.config.get("dataset") or next(named, "")


def read_split(path: str, split: str) -> tuple[Images, tuple[str, ...]]:
    """Read a split, or a slice of it, from files."""
    if not is_dataset(path):
        raise UserError(
            f"{path} is neither a file, nor a folder, nor one of the data sets "
            f"{', '.join(DATASETS)}: give the images with --data"
        )
    name, _ = parse_split(split)
    has_splits = bool(splits(path))
    if name == "train" and not has_splits:
        raise UserError(f"{path} has no splits: leave out --split={split}, or use a slice of test")
    (pixels, labels), names = read_files(path, name if has_splits else "")
    chosen = positions(split, len(labels))
    part = slice(chosen.start, chosen.stop)
    return Images(pixels[part], labels[part]), names


def common_names(networks: Sequence[Pretrained]) -> tuple[str, ...]:
    """Return the class names of networks; UserError unless all have the same classes."""
    first = networks[0]
    best = next((n for n in networks if is_named(n.class_names)), first)
    for network in networks:
        same = network.class_names == best.class_names
        unknown = not is_named(network.class_names)
        if len(network.class_names) != len(best.class_names) or not (same or unknown):
            raise UserError(
                f"{best.source} and {network.source} have other classes "
                f"({sample(best.class_names)}; {sample(network.class_names)}): evaluate them apart"
            )
    return best.class_names


def relabelled(
    title: str, images: Images, names: tuple[str, ...], networks: Sequence[Pretrained]
) -> Images:
    """Return images with labels in the order of the networks' classes, matched by name."""
    known = common_names(networks)
    source = networks[0].source
    if is_named(names) and is_named(known):
        if foreign := [name for name in names if name not in known]:
            raise UserError(
                f"{title} has the class {foreign[0]!r}, which {source} does not know: it has "
                f"{len(known)} classes, {sample(known)}"
            )
        order = np.array([known.index(name) for name in names], np.int32)
        return Images(images.images, order[images.labels])
    if len(names) > len(known) or (is_named(names) and len(names) < len(known)):
        raise UserError(f"{title} has {len(names)} classes, and {source} has {len(known)}")
    return images


def is_named(names: tuple[str, ...]) -> bool:
    return names != unnamed(len(names))


def unnamed(num_classes: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(num_classes))


def sample(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
