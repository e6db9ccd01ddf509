"""A config in steps and splits: when what happens, and which images it is for."""

import itertools
from typing import NamedTuple

import jax
import numpy as np

from resnet_cifar.config import Config, milestones
from resnet_cifar.data import DATASETS, Images, load_images, parse_split, positions
from resnet_cifar.errors import UserError


class Plan(NamedTuple):
    """A recipe in steps."""

    steps_per_epoch: int
    num_steps: int
    warmup_steps: int
    decay_steps: tuple[int, ...]


def make_plan(config: Config) -> Plan:
    """Turn the epochs of a config into steps, a last partial batch of an epoch dropped; UserError if they don't fit."""
    ranges = split_ranges(config)
    size, num_images = config.batch_size, len(ranges["train"])
    if size > num_images:
        raise UserError(
            f"config.batch_size={size} is larger than the {num_images:,} training images"
        )
    if size % jax.device_count():
        raise UserError(
            f"config.batch_size={size} must be a multiple of the {jax.device_count()} devices"
        )
    steps_per_epoch = num_images // size
    epochs = milestones(config)
    steps = [round(epoch * steps_per_epoch) for epoch in epochs]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise UserError(
            f"milestones at epochs {epochs} fall on the same of {steps_per_epoch} steps an epoch"
        )
    return Plan(steps_per_epoch, steps[-1], steps[0], tuple(steps[1:-1]))


def split_ranges(config: Config) -> dict[str, range]:
    """Return the positions that "train", "test" and perhaps "validation" take up in the data set's own splits.

    Raises:
      UserError: a split is no part of the data, or training would see what it is scored on.
    """
    sizes = DATASETS[config.dataset].sizes
    splits = {"train": config.train_split, "validation": config.validation_split, "test": "test"}
    ranges = {
        name: positions(split, sizes[parse_split(split)[0]])
        for name, split in splits.items()
        if split
    }
    for name in ranges.keys() - {"test"}:
        if parse_split(splits[name])[0] != "train":
            raise UserError(
                f"config.{name}_split={splits[name]!r} must be a part of train: the test set is for the end"
            )
    train, validation = ranges["train"], ranges.get("validation", range(0))
    if max(train.start, validation.start) < min(train.stop, validation.stop):
        raise UserError(
            f"config.train_split={config.train_split!r} and config.validation_split={config.validation_split!r} overlap"
        )
    return ranges


def load_splits(config: Config) -> dict[str, Images]:
    """Load the splits that a config names into host memory."""
    ranges = split_ranges(config)
    loaded = {
        name: load_images(config.dataset, name, config.data_dir, seed=config.seed)
        for name in ("train", "test")
    }
    return {
        name: Images(
            *(
                array[chosen.start : chosen.stop]
                for array in loaded["test" if name == "test" else "train"]
            )
        )
        for name, chosen in ranges.items()
    }


def blank_splits(config: Config) -> dict[str, Images]:
    """Return black images in place of those that a config names, for a run that is not to be trained."""
    return {
        name: Images(np.zeros((len(chosen), 32, 32, 3), np.uint8), np.zeros(len(chosen), np.int32))
        for name, chosen in split_ranges(config).items()
    }
