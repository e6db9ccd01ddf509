"""A run in memory: the images on the devices, the compiled steps, and one epoch or evaluation after the other."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from resnet_cifar.config import Config
from resnet_cifar.data import DATASETS, Images, epoch_order, normalize
from resnet_cifar.epochs import eval_indices, eval_steps, train_steps
from resnet_cifar.errors import UserError
from resnet_cifar.models import ResNet, uniform_scale
from resnet_cifar.optim import learning_rate_schedule, make_optimizer
from resnet_cifar.plan import load_splits, make_plan
from resnet_cifar.steps import TrainState, create_train_state
from resnet_cifar.stop import Stop

# A signal is answered after the dispatch under way and the one that waits.
LONGEST_DISPATCH_SECONDS = 5
AFTER_DIVERGENCE = (
    "the run has diverged and ends here. Checkpoints from before are as they were; the same command would come to the "
    "same step, so try a lower --config.learning_rate or another --config.seed, in another --workdir"
)
Sums = dict[str, float]  # Of metrics and seconds, over the steps since the last row.


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
        self._last_norm = math.nan

    def init_state(self) -> TrainState:
        """Draw the parameters: the state at step 0."""
        tx = make_optimizer(self.schedule, momentum=self.config.momentum, weight_decay=self.config.weight_decay)
        return create_train_state(self._init_key, self.model, tx)

    def place(self, state: TrainState) -> TrainState:
        """Put a copy of a state on every device."""
        return jax.device_put(state, self._replicated)

    def epoch_end(self, step: int) -> int:
        """Return the step at which the epoch that follows `step` ends, or the run within it."""
        return min((step // self.plan.steps_per_epoch + 1) * self.plan.steps_per_epoch, self.plan.num_steps)

    def compile(self, state: TrainState, step: int) -> None:
        """Compile all that is left to run from a step on, while there is nothing to lose yet."""
        spans = set()
        while step < self.plan.num_steps:
            spans.add(self.epoch_end(step) - step)
            step = self.epoch_end(step)
        for span in spans:
            for rows in self._cut(np.zeros((span, self.config.batch_size), np.int32)):
                self.compiled("train", state, rows)
        for split in (self.watched, "test"):
            for rows in self._cut(eval_indices(len(self.images[split].labels), self.config.batch_size)):
                self.compiled(split, state, rows)

    def train_epoch(
        self, state: TrainState, step: int, sums: Sums, *, advance: Callable[[int], None], stop: Stop
    ) -> tuple[TrainState, int, Sums]:
        """Train to the end of the epoch, or to where the dispatches under way end once a stop is asked for.

        Args:
          state: the one after `step` steps; donated.
          step: where to go on, at the beginning of an epoch or in the middle of it.
          sums: over the steps of this epoch that have been made before; empty at its beginning.
          advance: called with the number of steps that have been finished since the last call.
          stop: polled between dispatches.

        Returns:
          The next state, its step, and the sums up to it.

        Raises:
          UserError: the loss or the gradient is not finite.
        """
        first, size, sums = step, self.config.batch_size, dict(sums)
        start, compiled = time.perf_counter(), self.compile_seconds
        epoch, done = divmod(step, self.plan.steps_per_epoch)
        order = np.asarray(self._order(self._order_key, np.int32(epoch)))
        rows = order[done * size : (done + self.epoch_end(step) - step) * size].reshape(-1, size)
        waiting = []  # One dispatch is always waiting while another is under way, and never more.

        def finish(metrics: dict[str, Any]) -> None:
            nonlocal step
            metrics = jax.device_get(metrics)
            self._check_finite(metrics, step)
            add(sums, metrics)
            step += len(metrics["count"])
            advance(len(metrics["count"]))

        for piece in self._cut(rows):
            if stop.signal:
                break
            state, metrics = self.dispatch("train", state, piece)
            waiting.append(metrics)
            if len(waiting) > 1:
                finish(waiting.pop(0))
        for metrics in waiting:
            finish(metrics)
        seconds = time.perf_counter() - start - (self.compile_seconds - compiled)
        sums["train_seconds"] = sums.get("train_seconds", 0.0) + seconds
        # Never to one: a step outside of a loop is another program, and may round otherwise.
        while self.steps_per_dispatch > 3 and self.steps_per_dispatch * seconds > LONGEST_DISPATCH_SECONDS * (
            step - first
        ):
            self.steps_per_dispatch = -(-self.steps_per_dispatch // 2)
        return state, step, sums

    def train_row(self, step: int, sums: Sums) -> dict[str, float]:
        """Return the row of metrics for the steps that end at `step`."""
        return mean_metrics(sums) | {
            "grad_norm": sums["grad_norm"] / sums["steps"],
            "learning_rate": self.learning_rate(step - 1),
            "train_seconds": sums["train_seconds"],
            "images_per_second": sums["count"] / sums["train_seconds"],
        }

    def evaluate(self, state: TrainState, split: str, stop: Stop) -> dict[str, float] | None:
        """Score every image of a split exactly once; returns a row of metrics, or None once a stop is asked for."""
        start, sums = time.perf_counter(), {}
        n = len(self.images[split].labels)
        for rows in self._cut(eval_indices(n, self.config.batch_size)):
            if stop.signal:
                return None
            # One after the other: XLA's CPU devices deadlock over independent programs with collectives.
            add(sums, jax.device_get(self.dispatch(split, state, rows)))
        row = mean_metrics(sums, expected=n)
        if not math.isfinite(row["loss"]):
            raise UserError(f"the loss of the {split} split is {row['loss']}: {AFTER_DIVERGENCE}")
        return row | {"eval_seconds": time.perf_counter() - start}

    def learning_rate(self, step: int) -> float:
        """Return the rate of the update that follows `step` updates."""
        return np.asarray(self.schedule(step)).item()

    def _check_finite(self, metrics: dict[str, np.ndarray], step: int) -> None:
        """Raise a UserError at the first of some steps, which follow `step`, that diverged."""
        norms = metrics["grad_norm"]
        for i in np.flatnonzero(~np.isfinite(metrics["loss_sum"] + norms))[:1]:
            before = norms[i - 1] if i else self._last_norm
            after = "" if math.isnan(before) else f", after {before:.4g} in the step before"
            raise UserError(
                f"step {step + i + 1:,} (epoch {(step + i + 1) / self.plan.steps_per_epoch:.2f}), at learning rate "
                f"{self.learning_rate(step + i):.4g}, has the loss {metrics['loss_sum'][i] / metrics['count'][i]:.4g} "
                f"and a gradient of norm {norms[i]:.4g}{after}: {AFTER_DIVERGENCE}"
            )
        self._last_norm = norms[-1]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut rows of indices into dispatches of about the same length."""
        return np.array_split(rows, -(-len(rows) // self.steps_per_dispatch))

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


def add(sums: Sums, metrics: dict[str, np.ndarray]) -> None:
    """Add the metrics of some steps, each [steps], to the sums."""
    for name, values in metrics.items():
        sums[name] = sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
    sums["steps"] = sums.get("steps", 0) + len(metrics["count"])


def mean_metrics(sums: Sums, expected: int | None = None) -> dict[str, float]:
    """Divide sums by the number of images, which must be the expected one where there is one."""
    if expected is not None and sums["count"] != expected:
        raise RuntimeError(f"{sums['count']:g} images were scored instead of {expected}")
    names = {"loss": "loss_sum", "accuracy": "correct", "top5_accuracy": "correct_top5"}
    return {name: sums[key] / sums["count"] for name, key in names.items() if key in sums}
