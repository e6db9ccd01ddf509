"""A config in steps and split ranges, computed once."""

import itertools
from typing import NamedTuple

import numpy as np

from resnet_cifar.config import Config, milestones
from resnet_cifar.data import Images, find_dataset, load_images, parse_split, positions
from resnet_cifar.errors import UserError
from resnet_cifar.regularization import add_label_noise, choose_subset, subset_size

EMA = "_ema"  # Ends the name of a split that is scored with the averaged weights.


class Plan(NamedTuple):
    """When everything happens, in steps, and which images it happens to."""

    ranges: dict[str, range]  # Positions of "train", "test" and, if asked for, "validation".
    steps_per_epoch: int  # A last partial batch is dropped.
    num_steps: int
    warmup_steps: int
    decay_steps: tuple[int, ...]
    num_train: int  # Training images: the train split or, by `train_fraction`, a part of it.
    ema: bool = False  # Whether the averaged weights are scored, too.

    @property
    def watched(self) -> str:
        """The split that is scored during training."""
        return "validation" if "validation" in self.ranges else "test"

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def epoch_start(self, step: int) -> int:
        """Return the step that begins the epoch in progress after `step` steps."""
        return step - step % self.steps_per_epoch

    def epoch_end(self, step: int) -> int:
        """Return the step that ends the epoch in progress after `step` steps, or the run."""
        return min((step // self.steps_per_epoch + 1) * self.steps_per_epoch, self.num_steps)

    def is_due(self, every: int, step: int) -> bool:
        """Return whether something that is done every `every` epochs is due after `step` steps.

        It is due at the end of the run in any case, and nowhere else if `every` is 0.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        if step == self.num_steps:
            return True
        return every > 0 and epoch > 0 and within == 0 and epoch % every == 0

    def splits_due(self, every: int, step: int) -> list[str]:
        """Return the splits to score after `step` steps: the test set last, and at the end only."""
        splits = [self.watched] if self.is_due(every, step) else []
        if step == self.num_steps:
            splits = list(dict.fromkeys([self.watched, "test"]))  # Once if they are the same.
        return [name for split in splits for name in (*[split + EMA] * self.ema, split)]

    def result(self, split: str) -> str:
        """Return the split whose rows count: "test_ema" for "test" if weights are averaged."""
        return split + EMA * self.ema

    @property
    def scored(self) -> list[str]:
        """The splits that a run may have rows of."""
        averaged = [split + EMA for split in self.ranges if split != "train"]
        return [*self.ranges, *averaged * self.ema]

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self.ranges[images_of(split)])


def images_of(split: str) -> str:
    """Return the split whose images are scored: "test" for "test_ema"."""
    return split.removesuffix(EMA)


def make_plan(config: Config) -> Plan:
    """Convert a config to steps and ranges; UserError if its milestones or splits do not fit."""
    ranges = split_ranges(config)
    size = config.batch_size
    num_images = subset_size(len(ranges["train"]), config.train_fraction)
    if size > num_images:
        raise UserError(
            f"config.batch_size={size} is larger than the {num_images:,} training images: "
            "lower it, or raise config.train_fraction or config.train_split"
        )
    steps_per_epoch = num_images // size
    epochs = milestones(config)
    steps = [round(epoch * steps_per_epoch) for epoch in epochs]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise UserError(
            f"milestones at epochs {epochs} round to steps {steps} with {steps_per_epoch} steps "
            "per epoch; each must come after the one before: move them apart"
        )
    ema = config.ema_decay > 0
    return Plan(ranges, steps_per_epoch, steps[-1], steps[0], tuple(steps[1:-1]), num_images, ema)


def split_ranges(config: Config) -> dict[str, range]:
    """Return the positions of each split in the data set's own train or test split.

    Raises:
      UserError: a split is not part of the data, or training would see what it is scored on.
    """
    sizes = find_dataset(config.dataset).sizes
    splits = {"train": config.train_split, "test": "test"}
    if config.validation_split:
        splits["validation"] = config.validation_split
    ranges = {}
    for name, split in splits.items():
        source, _ = parse_split(split)
        if name != "test" and source != "train":
            raise UserError(
                f"config.{name}_split={split!r} must be part of train, such as 'train[:45000]': "
                "the test set is for the final score"
            )
        ranges[name] = positions(split, sizes[source])
    train, validation = ranges["train"], ranges.get("validation", range(0))
    if max(train.start, validation.start) < min(train.stop, validation.stop):
        raise UserError(
            f"config.train_split={config.train_split!r} and "
            f"config.validation_split={config.validation_split!r} overlap"
        )
    return ranges


def load_splits(config: Config, plan: Plan) -> dict[str, Images]:
    """Load the splits of a plan into host memory."""
    train, test = (
        load_images(config.dataset, name, config.data_dir, seed=config.seed)
        for name in ("train", "test")
    )
    splits = {
        name: Images(*(array[r.start : r.stop] for array in (test if name == "test" else train)))
        for name, r in plan.ranges.items()
    }
    return splits | {"train": training_images(config, splits["train"])}


def training_images(config: Config, split: Images) -> Images:
    """Return the part of the train split to train on, with its label noise."""
    if config.train_fraction < 1:
        chosen = choose_subset(config.seed, len(split.labels), config.train_fraction)
        split = Images(*(array[chosen] for array in split))
    if not config.label_noise:
        return split
    classes = find_dataset(config.dataset).num_classes
    labels = np.asarray(split.labels)
    return split._replace(labels=add_label_noise(config.seed, labels, config.label_noise, classes))


def blank_splits(plan: Plan) -> dict[str, Images]:
    """Return black images in place of the splits, for a dry run."""
    sizes = {name: len(r) for name, r in plan.ranges.items()} | {"train": plan.num_train}
    return {
        name: Images(np.zeros((n, 32, 32, 3), np.uint8), np.zeros(n, np.int32))
        for name, n in sizes.items()
    }
