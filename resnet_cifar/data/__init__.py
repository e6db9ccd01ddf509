"""CIFAR through TFDS, synthetic images, your own, and the preprocessing of all."""

from resnet_cifar.data.images import (
    DATASETS,
    AnyArray,
    Images,
    augment,
    class_names,
    dataset_title,
    epoch_order,
    find_dataset,
    is_dataset,
    load_images,
    load_split,
    normalize,
    parse_split,
    positions,
    shared_images,
    whereabouts,
)

__all__ = [
    "DATASETS",
    "AnyArray",
    "Images",
    "augment",
    "class_names",
    "dataset_title",
    "epoch_order",
    "find_dataset",
    "is_dataset",
    "load_images",
    "load_split",
    "normalize",
    "parse_split",
    "positions",
    "shared_images",
    "whereabouts",
]
