"""A run in memory: images on the devices, compiled programs, and a queue of dispatches.

At most two dispatches are in flight, so that the device never waits for the host and a signal is
answered soon. A call returns the dispatches that have finished meanwhile, as plain data.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from resnet_cifar.config import Config
from resnet_cifar.data import Images
from resnet_cifar.epochs import eval_indices
from resnet_cifar.errors import UserError
from resnet_cifar.metrics import Done
from resnet_cifar.plan import Plan, images_of, load_splits
from resnet_cifar.processes import SharedStop, from_primary, several
from resnet_cifar.programs import Programs, random_key, values
from resnet_cifar.state import TrainState, array_fields, averaged
from resnet_cifar.stop import Stop

LONGEST_DISPATCH_SECONDS = 5.0  # A signal waits for the two dispatches in flight.


class Trainer:
    """Trains and scores one run.

    Attributes:
      config: the run.
      programs: its network and compiled programs.
      plan: the config in steps.
      images: each split, replicated on the devices.
      steps_per_dispatch: how many steps are enqueued at once.
    """

    def __init__(
        self,
        config: Config,
        *,
        programs: Programs | None = None,
        load: Callable[[Plan], dict[str, Images]] | None = None,
        steps_per_dispatch: int | None = None,
        longest_dispatch_seconds: float = LONGEST_DISPATCH_SECONDS,
    ):
        """Load the data and build the network; nothing but the order of an epoch is compiled.

        Args:
          config: the run.
          programs: those of an earlier run, whose config may differ in the fields of
            `resnet_cifar.programs.FREE`.
          load: makes the splits in host memory; by default they are loaded as `config` says.
          steps_per_dispatch: by default what the devices suggest.
          longest_dispatch_seconds: longer training dispatches are halved.

        Raises:
          UserError: the config does not fit its data or the programs, or the data is missing or
            damaged.
        """
        if programs and (names := programs.misfits(config)):
            own = ", ".join(f"config.{n}={getattr(programs.config, n)!r}" for n in names)
            raise UserError(
                f"the programs were built for {own}: build Programs(config) for this run"
            )
        self.config = config
        self._compiled_before = programs.compile_seconds if programs else 0.0
        self.programs = programs or Programs(config)
        self.plan = self.programs.plan
        devices = self.programs.devices
        splits = load(self.plan) if load else load_splits(config, self.plan)
        self.images = {name: devices.replicate(images) for name, images in splits.items()}
        self.steps_per_dispatch = steps_per_dispatch or devices.steps_per_dispatch(
            self.plan.steps_per_epoch
        )
        self._longest_dispatch_seconds = longest_dispatch_seconds
        self._init_key, self._order_key, augment_key = jax.random.split(random_key(config.seed), 3)
        self._augment_key, self._values = devices.replicate((augment_key, values(config)))
        ends = range(0, self.plan.num_steps, self.plan.steps_per_epoch)
        last_steps = [self.plan.epoch_end(step) - 1 for step in ends]
        self._rates = dict(zip(last_steps, self.learning_rates(last_steps), strict=True))
        self._orders: dict[int, jax.Array] = {}
        self._in_flight: deque[tuple[str, int, float, Future, Any]] = deque()
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="watcher")
        self._stop: SharedStop | None = None
        self._last_end = -math.inf
        self._pace_is_known = False

    @property
    def compile_seconds(self) -> float:
        """Time spent compiling for this run."""
        return self.programs.compile_seconds - self._compiled_before

    def data_digests(self) -> dict[str, str]:
        """Return the SHA-256 of each split, where several processes are to compare theirs."""
        if not several():
            return {}
        return {
            f"the data of {split}": hashlib.sha256(
                b"".join(np.asarray(array).tobytes() for array in images)
            ).hexdigest()
            for split, images in self.images.items()
        }

    def share(self, stop: Stop) -> Stop:
        """Return a request to stop that all processes see after the same dispatch."""
        if not several():
            return stop
        self._stop = SharedStop(stop)
        return self._stop

    def init_state(self) -> TrainState:
        """Initialize the state at step 0."""
        return self.programs.init_state(self._init_key, self.config)

    def learning_rates(self, steps: Sequence[int]) -> list[float]:
        """Return the learning rate of each update, given the number of updates before it."""
        return self.programs.learning_rates(self.config.learning_rate, steps)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of one update; at an epoch's end without using the device."""
        return self._rates[step] if step in self._rates else self.learning_rates([step])[0]

    def compile(self, state: TrainState, step: int) -> None:
        """Compile everything that is left to run after `step` steps."""
        spans = set()
        while step < self.plan.num_steps:
            spans.add(self.plan.epoch_end(step) - step)
            step = self.plan.epoch_end(step)
        for span in spans:
            for rows in self._cut(np.zeros((span, self.config.batch_size), np.int32)):
                self.program("train", state, rows)
        for split in (self.plan.watched, "test"):
            for rows in self.eval_batches(split):
                self.program(split, state, rows)

    def epoch_batches(self, step: int) -> list[np.ndarray]:
        """Return the rest of the epoch after `step` steps, cut into dispatches: [steps, batch]."""
        size = self.config.batch_size
        epoch, done = divmod(step, self.plan.steps_per_epoch)
        left = self.plan.epoch_end(step) - step
        order = self._epoch_order(epoch)[done * size : (done + left) * size]
        return self._cut(order.reshape(left, size))

    def eval_batches(self, split: str) -> list[np.ndarray]:
        """Return every index of a split once, cut into dispatches: [steps, batch]."""
        return self._cut(eval_indices(self.plan.size(split), self.config.batch_size))

    def train(
        self, state: TrainState, step: int, rows: np.ndarray
    ) -> tuple[TrainState, list[Done]]:
        """Enqueue training steps on images of the train split.

        Args:
          state: after `step` steps; it is donated.
          step: training steps made before.
          rows: indices of images, [steps, batch].

        Returns:
          The next state, which may still be in flight, and the dispatches that have finished.
        """
        done = self._make_room("train", rows)
        arguments = self._arguments("train", state, rows)
        program, start = self.programs.compiled("train", *arguments), time.perf_counter()
        (fields, metrics), vote = self._call(program, arguments)
        state = state.replace(**fields)
        self._watch("train", step, start, metrics, vote)
        # The first dispatch is waited for: it shows how long a dispatch takes.
        done += self._finish(leave=1 if self._pace_is_known else 0)
        return state, done

    def evaluate(self, state: TrainState, step: int, split: str, rows: np.ndarray) -> list[Done]:
        """Enqueue the scoring of images of a split; arguments and result as of `train`.

        A split like "test_ema" is scored with the averaged weights, by the same program.
        """
        images = images_of(split)
        state = state if split == images else averaged(state)
        done = self._make_room(images, rows)
        arguments = self._arguments(images, state, rows)
        program, start = self.programs.compiled(images, *arguments), time.perf_counter()
        self._watch(split, step, start, *self._call(program, arguments))
        return done + self._finish(leave=0 if self.programs.devices.one_at_a_time else 1)

    def drain(self) -> list[Done]:
        """Wait for everything in flight."""
        return self._finish(leave=0)

    def program(self, split: str, state: TrainState, rows: np.ndarray) -> jax.stages.Compiled:
        """Return the compiled program for a dispatch."""
        return self.programs.compiled(split, *self._arguments(split, state, rows))

    def _make_room(self, split: str, rows: np.ndarray) -> list[Done]:
        """Drain the queue before a compilation, whose time is not to be charged to a dispatch."""
        return [] if self.programs.is_compiled(split, len(rows)) else self.drain()

    def _watch(self, split: str, step: int, start: float, metrics: Any, vote: Any) -> None:
        """Add a dispatch to the queue, and let a thread note when it has finished.

        The calling thread can't: on a GPU a call launches the kernels of its dispatch one by one,
        and returns long after the dispatch before it has finished.
        """
        finished = self._watcher.submit(lambda: (to_host(metrics), time.perf_counter()))
        self._in_flight.append((split, step, start, finished, vote))

    def _finish(self, *, leave: int) -> list[Done]:
        """Wait for the oldest dispatches until only `leave` are in flight."""
        finished = []
        while len(self._in_flight) > leave:
            split, step, start, watched, vote = self._in_flight.popleft()
            metrics, end = watched.result()
            done = Done(split, step, metrics, end - max(start, self._last_end), end)
            self._last_end = end
            if self._stop:
                self._stop.hear(int(vote))
            if split == "train":
                self._adapt(done)
            finished.append(done)
        return finished

    def _adapt(self, done: Done) -> None:
        """Halve the dispatches to come if this one was too long for a signal to wait for."""
        self._pace_is_known = True
        if self.steps_per_dispatch <= 3:
            return
        # Process 0's clock, so that all make the same dispatches.
        per_step = from_primary(lambda: done.seconds) / done.num_steps
        # Never to a single step: outside of a loop XLA may round it differently.
        while (
            self.steps_per_dispatch > 3
            and self.steps_per_dispatch * per_step > self._longest_dispatch_seconds
        ):
            self.steps_per_dispatch = -(-self.steps_per_dispatch // 2)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch, enqueued during the one before so that nothing waits."""
        order = self._orders.pop(epoch, None)
        order = self.programs.order(self._order_key, epoch) if order is None else order
        self._orders = {epoch + 1: self.programs.order(self._order_key, epoch + 1)}
        return np.asarray(order)

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut rows of indices into dispatches of about the same length."""
        return np.array_split(rows, -(-len(rows) // self.steps_per_dispatch))

    def _arguments(self, split: str, state: TrainState, rows: np.ndarray) -> tuple[Any, ...]:
        devices = self.programs.devices
        more = (self._augment_key, self._values) if split == "train" else ()
        votes = (devices.votes(self._stop.vote if self._stop else 0),) if several() else ()
        indices = devices.split_batch(rows)
        return (array_fields(state), self.images[split], indices, *more, *votes)

    def _call(self, program: jax.stages.Compiled, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return what a program returns, and the highest vote, None in a single process."""
        return program(*arguments) if several() else (program(*arguments), None)


def to_host(metrics: Any) -> Any:
    """Wait for metrics and copy them to the host."""
    return jax.tree.map(np.asarray, metrics)
