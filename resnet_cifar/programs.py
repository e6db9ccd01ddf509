"""The network of a config and its compiled programs, which runs of several seeds share."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from resnet_cifar import processes
from resnet_cifar.config import Config
from resnet_cifar.data import Images, epoch_order, find_dataset, normalize
from resnet_cifar.devices import Devices, choose_devices, kernels
from resnet_cifar.epochs import eval_steps, train_steps
from resnet_cifar.errors import UserError
from resnet_cifar.models import ResNet, uniform_scale
from resnet_cifar.optim import learning_rate_schedule, make_optimizer
from resnet_cifar.plan import make_plan
from resnet_cifar.regularization import Regularization, smoothed_cross_entropy
from resnet_cifar.state import LossFn, TrainState, array_fields, create_train_state
from resnet_cifar.workdir import CHANGEABLE

SCALE_INITS = {"uniform": uniform_scale, "ones": jax.nn.initializers.ones}
CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels
VALUES = ("learning_rate", "weight_decay")  # Arguments of the training program.
# Fields that may differ among the runs that share programs.
FREE = {*VALUES, *CHANGEABLE, "seed", "init_from", "label_noise"}


class Programs:
    """A network, its optimizer, and its steps compiled for each number of steps in a dispatch.

    Attributes:
      config: what they were built for.
      plan: the config in steps.
      devices: where they run.
      kernels: whose kernels compute the convolutions.
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
        self.devices = devices or Devices(choose_devices(config.num_devices))
        self.plan = make_plan(config)
        if problem := self.devices.batch_problem(config.batch_size):
            raise UserError(f"config.{problem}")
        dataset = find_dataset(config.dataset)
        self.kernels = kernels(config.width)
        self.dtype = self.devices.dtype(config.dtype)
        self.model = ResNet(
            config.depth,
            num_classes=dataset.num_classes,
            width=config.width,
            shortcut=config.shortcut,
            scale_init=SCALE_INITS[config.bn_scale_init],
            dtype=self.dtype,
            remat=config.remat,
            native=self.kernels.usable,
        )
        self._schedule = partial(
            learning_rate_schedule,
            num_steps=self.plan.num_steps,
            warmup_steps=self.plan.warmup_steps,
            decay_steps=self.plan.decay_steps,
            decay_factor=config.decay_factor,
            warmup=config.warmup,
            decay=config.decay,
        )
        self._preprocess = partial(normalize, mean=dataset.mean, std=dataset.std, dtype=self.dtype)
        self._loss, smoothing = CROSS_ENTROPY, config.label_smoothing
        if smoothing:
            self._loss = partial(smoothed_cross_entropy, smoothing=smoothing)
        self._regularize = None
        if config.cutout or config.mixup:
            off = round(config.mixup_off_epochs * self.plan.steps_per_epoch)
            mixup_steps = self.plan.num_steps - off
            self._regularize = Regularization(config.cutout, config.mixup, mixup_steps)
        self._rates = jax.jit(lambda peak, steps: jax.vmap(self._schedule(peak))(steps))
        self._compiled: dict[tuple[str, int], jax.stages.Compiled] = {}
        start = time.perf_counter()
        self._order = jax.jit(partial(epoch_order, n=self.plan.num_train))
        self._order = self._order.lower(random_key(0), np.int32(0)).compile()
        self.compile_seconds = time.perf_counter() - start

    def misfits(self, config: Config) -> list[str]:
        """Return the fields in which a config differs too much to be run by these programs."""
        names = [field.name for field in dataclasses.fields(Config) if field.name not in FREE]
        return [name for name in names if getattr(config, name) != getattr(self.config, name)]

    def init_state(self, key: jax.Array, config: Config) -> TrainState:
        """Initialize the parameters and the optimizer of a config: a state at step 0."""
        optimizer = self.optimizer(**values(config))
        return create_train_state(key, self.model, optimizer, ema_decay=config.ema_decay)

    def optimizer(self, learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        """Build the optimizer; the two values may be traced."""
        return make_optimizer(
            self._schedule(learning_rate),
            momentum=self.config.momentum,
            weight_decay=weight_decay,
            nesterov=self.config.nesterov,
            optimizer=self.config.optimizer,
            decay_mask=self.config.decay_mask,
        )

    def order(self, key: jax.Array, epoch: int) -> jax.Array:
        """Enqueue the order in which an epoch visits the training images."""
        return self._order(key, np.int32(epoch))

    def learning_rates(self, peak: float, steps: Sequence[int]) -> list[float]:
        """Return the learning rate of each update, given the number of updates before it."""
        return self._rates(np.float32(peak), np.asarray(steps, np.int32)).tolist()

    def is_compiled(self, split: str, num_steps: int) -> bool:
        return (split, num_steps) in self._compiled

    def compiled(self, split: str, *arguments: Any) -> jax.stages.Compiled:
        """Return the program that trains on "train", or scores another split.

        Args:
          split: of the images.
          *arguments: on the devices: the `array_fields` of a state, which training donates, images
            and indices as of `train_steps` or `eval_steps`, and to train also a key and the
            `values` of a config; in several processes also the votes of `voting`.
        """
        key = (split, len(arguments[2]))
        if key not in self._compiled:
            start = time.perf_counter()
            steps = self._train if split == "train" else self._evaluate
            jitted = jax.jit(
                voting(steps) if processes.several() else steps,
                donate_argnums=0 if split == "train" else (),
                out_shardings=self.devices.replicated,
            )
            self._compiled[key] = jitted.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[key]

    def _train(self, fields: Any, data: Images, rows: Any, key: Any, own: dict[str, Any]) -> Any:
        state = self._state(fields, self.optimizer(**own), self._loss)
        state = state.replace(ema_decay=self.config.ema_decay)
        state, metrics = train_steps(
            state, data, rows, key, preprocess=self._preprocess, regularize=self._regularize
        )
        return array_fields(state), metrics

    def _evaluate(self, fields: Any, data: Images, rows: Any) -> Any:
        state = self._state(fields, optax.identity(), CROSS_ENTROPY)
        return eval_steps(state, data, rows, preprocess=self._preprocess)

    def _state(self, fields: dict[str, Any], tx: Any, loss_fn: LossFn) -> TrainState:
        return TrainState(**fields, apply_fn=self.model.apply, tx=tx, loss_fn=loss_fn)


def values(config: Config) -> dict[str, np.float32]:
    """Return the hyperparameters that are arguments of the training program."""
    return {name: np.float32(getattr(config, name)) for name in VALUES}


def voting(steps: Callable[..., Any]) -> Callable[..., Any]:
    """Take the votes of all devices as a last argument, and also return the highest.

    Processes so agree on a request to stop without a message of their own.
    """

    def voted(*arguments: Any, **keywords: Any) -> tuple[Any, jax.Array]:
        return steps(*arguments[:-1], **keywords), arguments[-1].max()

    return voted


def random_key(seed: int) -> jax.Array:
    """Return a key of the same kind whatever JAX's default is."""
    return jax.random.key(seed, impl="threefry2x32")
