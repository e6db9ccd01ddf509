"""The data sets: CIFAR through TFDS, synthetic images, and everything done to images before the first layer."""

from resnet_cifar.data.images import (
    DATASETS,
    AnyArray,
    Images,
    augment,
    class_names,
    epoch_order,
    load_images,
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
    "normalize",
    "parse_split",
    "positions",
    "whereabouts",
]
