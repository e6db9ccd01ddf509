"""CIFAR through TFDS, synthetic images, and the preprocessing of both."""

from resnet_cifar.data.images import (
    DATASETS,
    AnyArray,
    Images,
    augment,
    class_names,
    epoch_order,
    load_images,
    load_split,
    normalize,
    parse_split,
    positions,
    whereabouts,
)

__all__ = [
    "DATASETS",
    "AnyArray",
    "Images",
    "augment",
    "class_names",
    "epoch_order",
    "load_images",
    "load_split",
    "normalize",
    "parse_split",
    "positions",
    "whereabouts",
]
