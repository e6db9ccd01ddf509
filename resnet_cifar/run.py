"""What a config stands for: the plan in steps, the images on the devices, the compiled steps."""

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from resnet_cifar.config import Config
from resnet_cifar.data import DATASETS, Images, epoch_order, load_images, normalize, parse_split, positions
from resnet_cifar.epochs import eval_indices, eval_steps, train_steps
from resnet_cifar.errors import UserError
from resnet_cifar.models import ResNet, uniform_scale
from resnet_cifar.optim import learning_rate_schedule, make_optimizer
from resnet_cifar.steps import TrainState, create_train_state


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
        raise UserError(f"config.batch_size={size} is larger than the {num_images:,} training images")
    if size % jax.device_count():
        raise UserError(f"config.batch_size={size} must be a multiple of the {jax.device_count()} devices")
    steps_per_epoch = num_images // size
    epochs = (config.warmup_epochs, *config.decay_epochs, config.num_epochs)
    steps = [round(epoch * steps_per_epoch) for epoch in epochs]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise UserError(f"milestones at epochs {epochs} fall on the same of {steps_per_epoch} steps an epoch")
    return Plan(steps_per_epoch, steps[-1], steps[0], tuple(steps[1:-1]))


def split_ranges(config: Config) -> dict[str, range]:
    """Return the positions that "train", "test" and perhaps "validation" take up in the data set's own splits.

    Raises:
      UserError: a split is no part of the data, or training would see what it is scored on.
    """
    sizes = DATASETS[config.dataset].sizes
    splits = {"train": config.train_split, "validation": config.validation_split, "test": "test"}
    ranges = {name: positions(split, sizes[parse_split(split)[0]]) for name, split in splits.items() if split}
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
    loaded = {name: load_images(config.dataset, name, config.data_dir, seed=config.seed) for name in ("train", "test")}
    return {
        name: Images(*(array[chosen.start : chosen.stop] for array in loaded["test" if name == "test" else "train"]))
        for name, chosen in ranges.items()
    }


def blank_splits(config: Config) -> dict[str, Images]:
    """Return black images in place of those that a config names, for a run that is not to be trained."""
    return {
        name: Images(np.zeros((len(chosen), 32, 32, 3), np.uint8), np.zeros(len(chosen), np.int32))
        for name, chosen in split_ranges(config).items()
    }


class Run:
    """One run, ready to start.

    Attributes:
      config: what it was built from.
      plan: the recipe in steps.
      images: the splits, "train", "test" and perhaps "validation", a copy on every device.
      watched: the split scored while training.
      model: the network.
      schedule: learning rate by step.
      compile_seconds: time spent compiling so far.
    """

    def __init__(self, config: Config, load: Callable[[Config], dict[str, Images]] = load_splits):
        """Load the data and build everything but the compiled steps; UserError if the config does not fit it."""
        self.config = config
        dataset = DATASETS[config.dataset]
        self.plan = make_plan(config)
        images = load(config)
        self.watched = "validation" if "validation" in images else "test"

        devices = jax.devices()
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._split_batch = NamedSharding(mesh, PartitionSpec(None, "data"))
        self.images = {split: jax.device_put(data, self._replicated) for split, data in images.items()}

        on_cpu = devices[0].platform == "cpu"
        self.steps_per_dispatch = 1 if on_cpu else self.plan.steps_per_epoch
        self.dtype = jnp.dtype({"auto": "float32" if on_cpu else "bfloat16"}.get(config.dtype, config.dtype))
        self._preprocess = partial(normalize, mean=dataset.mean, std=dataset.std, dtype=self.dtype)
        self.model = ResNet(
            config.depth,
            num_classes=dataset.num_classes,
            width=config.width,
            shortcut=config.shortcut,
            scale_init={"uniform": uniform_scale, "ones": jax.nn.initializers.ones}[config.bn_scale_init],
            dtype=self.dtype,
        )
        self.schedule = learning_rate_schedule(
            config.learning_rate,
            warmup_steps=self.plan.warmup_steps,
            decay_steps=self.plan.decay_steps,
            decay_factor=config.decay_factor,
            warmup=config.warmup,
        )
        self._init_key, self._order_key, augment_key = jax.random.split(jax.random.key(config.seed), 3)
        self._augment_key = jax.device_put(augment_key, self._replicated)
        self._programs: dict[tuple[str, tuple[int, ...]], jax.stages.Compiled] = {}
        start = time.perf_counter()
        order = jax.jit(partial(epoch_order, n=len(self.images["train"].labels)))
        self._order = order.lower(self._order_key, np.int32(0)).compile()
        self.compile_seconds = time.perf_counter() - start

    def init_state(self) -> TrainState:
        """Draw the parameters: the state at step 0, a copy on every device."""
        config = self.config
        tx = make_optimizer(self.schedule, momentum=config.momentum, weight_decay=config.weight_decay)
        return jax.device_put(create_train_state(self._init_key, self.model, tx), self._replicated)

    def train_epoch(
        self, state: TrainState, epoch: int, steps: int, advance: Callable[[int], None]
    ) -> tuple[TrainState, dict[str, float]]:
        """Make the first `steps` steps of an epoch.

        Args:
          state: at the beginning of the epoch; donated.
          epoch: its number, from 0.
          steps: `plan.steps_per_epoch`, or fewer in a last epoch cut short.
          advance: called with the number of steps that have been finished since the last call.

        Returns:
          The state after them, and a row of metrics.
        """
        size = self.config.batch_size
        start, compiled = time.perf_counter(), self.compile_seconds
        order = np.asarray(self._order(self._order_key, np.int32(epoch)))
        sums = []
        for rows in cut(order[: steps * size].reshape(steps, size), self.steps_per_dispatch):
            state, metrics = self.dispatch("train", state, rows)
            if sums:  # One dispatch is always waiting while another is under way, and never more.
                advance(len(jax.block_until_ready(sums[-1])["count"]))
            sums.append(metrics)
        row = mean_metrics(sums)
        advance(len(sums[-1]["count"]))
        compiling = self.compile_seconds - compiled
        seconds = time.perf_counter() - start - compiling
        row["learning_rate"] = np.asarray(self.schedule(epoch * self.plan.steps_per_epoch + steps - 1)).item()
        times = {"train_seconds": seconds, "compile_seconds": compiling, "images_per_second": steps * size / seconds}
        return state, row | times

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """Score every image of a split exactly once; returns a row of metrics."""
        n = len(self.images[split].labels)
        start, compiled = time.perf_counter(), self.compile_seconds
        indices = eval_indices(n, self.config.batch_size)
        sums = [  # One after the other: XLA's CPU devices deadlock over independent programs with collectives.
            jax.block_until_ready(self.dispatch(split, state, rows))
            for rows in cut(indices, 1 if self.steps_per_dispatch == 1 else len(indices))
        ]
        row = mean_metrics(sums, expected=n)
        compiling = self.compile_seconds - compiled
        return row | {"eval_seconds": time.perf_counter() - start - compiling, "compile_seconds": compiling}

    def dispatch(self, split: str, state: TrainState, rows: np.ndarray) -> Any:
        """Run `train_steps` over images of the train split (the state is donated), `eval_steps` over those of another.

        Args:
          split: a key of `images`.
          state: to train or to score.
          rows: indices of images, [steps, batch].
        """
        return self.compiled(split, state, rows)(*self._arguments(split, state, rows))

    def compiled(self, split: str, state: TrainState, rows: np.ndarray) -> jax.stages.Compiled:
        """Return the program that `dispatch` runs, compiled once for each split and number of steps."""
        if (split, rows.shape) not in self._programs:
            start = time.perf_counter()
            training = split == "train"
            function = partial(train_steps if training else eval_steps, preprocess=self._preprocess)
            jitted = jax.jit(function, donate_argnums=0 if training else (), out_shardings=self._replicated)
            self._programs[split, rows.shape] = jitted.lower(*self._arguments(split, state, rows)).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._programs[split, rows.shape]

    def _arguments(self, split: str, state: TrainState, rows: np.ndarray) -> tuple[Any, ...]:
        """Return the arguments of a program, the indices of each batch split among the devices."""
        placed = jax.device_put(rows, self._split_batch)
        return (state, self.images[split], placed) + ((self._augment_key,) if split == "train" else ())


def cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an array into pieces of `size` rows; the last may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def mean_metrics(sums: list[dict[str, Any]], expected: int | None = None) -> dict[str, float]:
    """Wait for the sums of all dispatches, add them up and divide them by the number of images."""
    sums = jax.device_get(sums)
    total = {name: float(sum(np.sum(part[name], dtype=np.float64) for part in sums)) for name in sums[0]}
    count = total["count"]
    if expected is not None and count != expected:
        raise RuntimeError(f"{count:g} images were scored instead of {expected}")
    names = {"loss": "loss_sum", "accuracy": "correct", "top5_accuracy": "correct_top5"}
    return {name: total[key] / count for name, key in names.items() if key in total}
