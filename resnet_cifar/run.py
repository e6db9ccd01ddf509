"""A run in memory: the images on the devices, the compiled steps, and one epoch or evaluation after the other."""

import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from resnet_cifar.config import Config
from resnet_cifar.data import Images
from resnet_cifar.epochs import eval_indices
from resnet_cifar.errors import Diverged
from resnet_cifar.plan import load_splits
from resnet_cifar.programs import Programs
from resnet_cifar.steps import TrainState
from resnet_cifar.stop import Stop

# A signal is answered after the dispatch under way and the one that waits.
LONGEST_DISPATCH_SECONDS = 5
AFTER_DIVERGENCE = (
    "the run has diverged and ends here. Checkpoints from before are as they were; the same command would come to the "
    "same step, so try a lower --config.learning_rate or another --config.seed, in another --workdir"
)
Metrics = dict[str, np.ndarray]  # Of the steps of a dispatch, each [steps].
Sums = dict[str, float]  # Of metrics and seconds, over the steps since the last row.


class Run:
    """One run, ready to start.

    Attributes:
      config: what it was built from.
      programs: the network and its compiled steps.
      plan: the recipe in steps.
      images: the splits, "train", "test" and perhaps "validation", a copy on every device.
      watched: the split scored while training.
      compile_seconds: time spent compiling for this run.
    """

    def __init__(
        self,
        config: Config,
        load: Callable[[Config], dict[str, Images]] = load_splits,
        programs: Programs | None = None,
    ):
        """Load the data and build everything but the compiled steps; UserError if the config does not fit it.

        Args:
          config: the run.
          load: gives its splits.
          programs: those of a run before, which serve this config; built if there are none.
        """
        self.config = config
        self._compiled_before = programs.compile_seconds if programs else 0.0
        self.programs = programs or Programs(config)
        self.plan = self.programs.plan
        images = load(config)
        self.watched = "validation" if "validation" in images else "test"
        self.images = {split: self.programs.place(data) for split, data in images.items()}
        self._init_key, self._order_key, augment_key = jax.random.split(
            jax.random.key(config.seed), 3
        )
        self._augment_key = self.programs.place(augment_key)
        self._last_norm = math.nan
        self._orders: dict[int, jax.Array] = {}
        self._under_way: deque[tuple[float, Any, Callable[[Metrics, float], None]]] = deque()
        self._last_end = -math.inf
        self._pace_is_known = False

    @property
    def compile_seconds(self) -> float:
        return self.programs.compile_seconds - self._compiled_before

    def init_state(self) -> TrainState:
        """Draw the parameters: the state at step 0."""
        return self.programs.init_state(self._init_key)

    def epoch_end(self, step: int) -> int:
        """Return the step at which the epoch that follows `step` ends, or the run within it."""
        return min(
            (step // self.plan.steps_per_epoch + 1) * self.plan.steps_per_epoch, self.plan.num_steps
        )

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
            for rows in self._cut(
                eval_indices(len(self.images[split].labels), self.config.batch_size)
            ):
                self.compiled(split, state, rows)

    def train_epoch(
        self,
        state: TrainState,
        step: int,
        *,
        finish: Callable[[int, Metrics, float], None],
        stop: Stop,
    ) -> tuple[TrainState, int]:
        """Enqueue the rest of the epoch, up to the dispatch under way once a stop is asked for.

        Args:
          state: the one after `step` steps; donated.
          step: where to go on, at the beginning of an epoch or in the middle of it.
          finish: called for each dispatch, once it is done and perhaps in a later call of this class, with the step it
            has led to, the metrics of its steps and the seconds it took.
          stop: polled between dispatches.

        Returns:
          The next state, which may be still on its way, and its step.

        Raises:
          Diverged: the loss or the gradient of an earlier dispatch is not finite.
        """
        size = self.config.batch_size
        epoch, done = divmod(step, self.plan.steps_per_epoch)
        rows = self._epoch_order(epoch)[
            done * size : (done + self.epoch_end(step) - step) * size
        ].reshape(-1, size)
        for piece in self._cut(rows):
            if stop.signal:
                break
            state = self.dispatch(
                "train", state, piece, partial(self._finish_training, step, finish)
            )
            step += len(piece)
            if not self._pace_is_known:
                self.drain()
        return state, step

    def _finish_training(
        self,
        step: int,
        finish: Callable[[int, Metrics, float], None],
        metrics: Metrics,
        seconds: float,
    ) -> None:
        """Check the metrics of some steps that follow `step`, and cut the dispatches that come if this one was long."""
        self._check_finite(metrics, step)
        self._pace_is_known = True
        steps = len(metrics["count"])
        # Never to one: a step outside of a loop is another program, and may round otherwise.
        programs = self.programs
        while (
            programs.steps_per_dispatch > 3
            and programs.steps_per_dispatch * seconds > LONGEST_DISPATCH_SECONDS * steps
        ):
            programs.steps_per_dispatch = -(-programs.steps_per_dispatch // 2)
        finish(step + steps, metrics, seconds)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch, drawn during the one before: the host never waits for what is under way."""
        order = self._orders.pop(epoch, None)
        order = self.programs.order(self._order_key, np.int32(epoch)) if order is None else order
        self._orders = {epoch + 1: self.programs.order(self._order_key, np.int32(epoch + 1))}
        return np.asarray(order)

    def dispatch(
        self,
        split: str,
        state: TrainState,
        rows: np.ndarray,
        finish: Callable[[Metrics, float], None],
    ) -> TrainState:
        """Enqueue `train_steps` over images of the train split, or `eval_steps` over those of another.

        Then wait for the dispatch before, while the device has this one to go on with.

        Args:
          split: a key of `images`.
          state: to train (it is donated) or to score.
          rows: indices of images, [steps, batch].
          finish: called with the metrics and the seconds it took, when the next dispatch is under way or by `drain`.

        Returns:
          The next state.
        """
        if not self.programs.is_compiled(split, rows):
            self.drain()  # What is under way is not to be charged with the time to compile.
        arguments = self._arguments(split, state, rows)
        program = self.programs.compiled(split, *arguments)
        start = time.perf_counter()
        results = program(*arguments)
        state, metrics = results if split == "train" else (state, results)
        self._under_way.append((start, metrics, finish))
        if len(self._under_way) > 1:
            self._finish_oldest()
        return state

    def drain(self) -> None:
        """Wait for all that is under way."""
        while self._under_way:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        start, metrics, finish = self._under_way.popleft()
        metrics = jax.device_get(metrics)
        end = time.perf_counter()
        seconds, self._last_end = end - max(start, self._last_end), end
        finish(metrics, seconds)

    def train_row(self, step: int, sums: Sums) -> dict[str, float]:
        """Return the row of metrics for the steps that end at `step`."""
        return mean_metrics(sums) | {
            "grad_norm": sums["grad_norm"] / sums["steps"],
            "learning_rate": self.learning_rate(step - 1),
            "train_seconds": sums["train_seconds"],
            "images_per_second": sums["count"] / sums["train_seconds"],
        }

    def evaluate(
        self,
        state: TrainState,
        split: str,
        *,
        finish: Callable[[dict[str, float]], None],
        stop: Stop,
    ) -> None:
        """Enqueue the scoring of every image of a split, each exactly once.

        Args:
          state: what to score.
          split: a key of `images`.
          finish: called with a row of metrics, perhaps in a later call of this class; never if a stop comes first.
          stop: polled between dispatches.

        Raises:
          Diverged: from the call that would call `finish`: the loss is not finite.
        """
        n, sums = len(self.images[split].labels), {}

        def finish_dispatch(metrics: Metrics, seconds: float) -> None:
            add(sums, metrics)
            sums["seconds"] = sums.get("seconds", 0.0) + seconds
            if sums["steps"] == steps:
                row = mean_metrics(sums, expected=n)
                if not math.isfinite(row["loss"]):
                    raise Diverged(
                        f"the loss of the {split} split is {row['loss']}: {AFTER_DIVERGENCE}"
                    )
                finish(row | {"eval_seconds": sums["seconds"]})

        rows = eval_indices(n, self.config.batch_size)
        steps = len(rows)
        for piece in self._cut(rows):
            if stop.signal:
                return
            self.dispatch(split, state, piece, finish_dispatch)
            if self.programs.one_at_a_time:
                self.drain()

    def learning_rate(self, step: int) -> float:
        """Return the rate of the update that follows `step` updates."""
        return np.asarray(self.programs.schedule(step)).item()

    def _check_finite(self, metrics: Metrics, step: int) -> None:
        """Raise a UserError at the first of some steps, which follow `step`, that diverged."""
        norms = metrics["grad_norm"]
        for i in np.flatnonzero(~np.isfinite(metrics["loss_sum"] + norms))[:1]:
            before = norms[i - 1] if i else self._last_norm
            after = "" if math.isnan(before) else f", after {before:.4g} in the step before"
            raise Diverged(
                f"step {step + i + 1:,} (epoch {(step + i + 1) / self.plan.steps_per_epoch:.2f}), at learning rate "
                f"{self.learning_rate(step + i):.4g}, has the loss {metrics['loss_sum'][i] / metrics['count'][i]:.4g} "
                f"and a gradient of norm {norms[i]:.4g}{after}: {AFTER_DIVERGENCE}"
            )
        self._last_norm = norms[-1]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut rows of indices into dispatches of about the same length."""
        return np.array_split(rows, -(-len(rows) // self.programs.steps_per_dispatch))

    def compiled(self, split: str, state: TrainState, rows: np.ndarray) -> jax.stages.Compiled:
        """Return the program that `dispatch` runs."""
        return self.programs.compiled(split, *self._arguments(split, state, rows))

    def _arguments(self, split: str, state: TrainState, rows: np.ndarray) -> tuple[Any, ...]:
        """Return the arguments of a program."""
        key = (self._augment_key,) if split == "train" else ()
        return (state, self.images[split], self.programs.place_rows(rows), *key)


def add(sums: Sums, metrics: Metrics) -> None:
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
