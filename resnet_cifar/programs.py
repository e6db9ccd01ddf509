"""The network of a config and its compiled programs, which runs of several seeds share."""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from resnet_cifar.config import Config
from resnet_cifar.data import epoch_order, find_dataset, normalize
from resnet_cifar.devices import Devices
from resnet_cifar.epochs import eval_steps, train_steps
from resnet_cifar.errors import UserError
from resnet_cifar.models import ResNet, uniform_scale
from resnet_cifar.optim import learning_rate_schedule, make_optimizer
from resnet_cifar.plan import make_plan
from resnet_cifar.steps import TrainState, create_train_state

SCALE_INITS = {"uniform": uniform_scale, "ones": jax.nn.initializers.ones}


class Programs:
    """A network, its optimizer, and its steps compiled for each number of steps in a dispatch.

    Attributes:
      config: what they were built for.
      plan: the config in steps.
      devices: where they run.
      dtype: of activations.
      model: the network.
      compile_seconds: time spent compiling so far.
    """

    def __init__(self, config: Config, devices: Devices | None = None):
        """Build the network and the optimizer; UserError if the config does not fit its data."""
        if jax.config.values["jax_disable_jit"]:
            raise UserError(
                "JAX_DISABLE_JIT is set, but a run compiles its steps: unset it, or debug "
                "train_step on one batch as docs/use_the_step.md shows"
            )
        self.config = config
        self.devices = devices or Devices()
        self.plan = make_plan(config)
        if config.batch_size % self.devices.count:
            raise UserError(
                f"config.batch_size={config.batch_size} must be a multiple of the "
                f"{self.devices.count} devices"
            )
        dataset = find_dataset(config.dataset)
        self.dtype = self.devices.dtype(config.dtype)
        self.model = ResNet(
            config.depth,
            num_classes=dataset.num_classes,
            width=config.width,
            shortcut=config.shortcut,
            scale_init=SCALE_INITS[config.bn_scale_init],
            dtype=self.dtype,
        )
        self._schedule = learning_rate_schedule(
            config.learning_rate,
            num_steps=self.plan.num_steps,
            warmup_steps=self.plan.warmup_steps,
            decay_steps=self.plan.decay_steps,
            decay_factor=config.decay_factor,
            warmup=config.warmup,
            decay=config.decay,
        )
        self._tx = make_optimizer(
            self._schedule,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self._preprocess = partial(normalize, mean=dataset.mean, std=dataset.std, dtype=self.dtype)
        ends = range(0, self.plan.num_steps, self.plan.steps_per_epoch)
        last_steps = [self.plan.epoch_end(step) - 1 for step in ends]
        self._rates = dict(zip(last_steps, self.learning_rates(last_steps), strict=True))
        self._compiled: dict[tuple[str, int], jax.stages.Compiled] = {}
        start = time.perf_counter()
        self._order = jax.jit(partial(epoch_order, n=len(self.plan.ranges["train"])))
        self._order = self._order.lower(random_key(0), np.int32(0)).compile()
        self.compile_seconds = time.perf_counter() - start

    def matches(self, config: Config) -> bool:
        """Return whether a config differs from this one only in its seed."""
        return dataclasses.replace(config, seed=self.config.seed) == self.config

    def init_state(self, key: jax.Array) -> TrainState:
        """Initialize the parameters and the optimizer: a state at step 0."""
        return create_train_state(key, self.model, self._tx)

    def order(self, key: jax.Array, epoch: int) -> jax.Array:
        """Enqueue the order in which an epoch visits the training images."""
        return self._order(key, np.int32(epoch))

    def learning_rates(self, steps: Sequence[int]) -> list[float]:
        """Return the learning rates of the updates that follow so many updates."""
        return jax.jit(jax.vmap(self._schedule))(np.asarray(steps, np.int32)).tolist()

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of one update; at an epoch's end without using the device."""
        return self._rates[step] if step in self._rates else self.learning_rates([step])[0]

    def is_compiled(self, split: str, num_steps: int) -> bool:
        return (split, num_steps) in self._compiled

    def compiled(self, split: str, *arguments: Any) -> jax.stages.Compiled:
        """Return the program that trains on "train", or scores another split.

        Args:
          split: of the images.
          *arguments: of `train_steps`, which donates its state, or of `eval_steps`, on the
            devices.
        """
        key = (split, len(arguments[2]))
        if key not in self._compiled:
            start = time.perf_counter()
            training = split == "train"
            jitted = jax.jit(
                partial(train_steps if training else eval_steps, preprocess=self._preprocess),
                donate_argnums=0 if training else (),
                out_shardings=self.devices.replicated,
            )
            self._compiled[key] = jitted.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[key]


def random_key(seed: int) -> jax.Array:
    """Return a key of the same kind whatever JAX's default is."""
    return jax.random.key(seed, impl="threefry2x32")
