"""The network of a config and its compiled programs; and keeping what is compiled from one start to the next."""

import dataclasses
import os
import platform
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from resnet_cifar.config import Config
from resnet_cifar.data import DATASETS, epoch_order, normalize
from resnet_cifar.epochs import eval_steps, train_steps
from resnet_cifar.models import ResNet, uniform_scale
from resnet_cifar.optim import learning_rate_schedule, make_optimizer
from resnet_cifar.plan import make_plan, split_ranges
from resnet_cifar.steps import TrainState, create_train_state


class Programs:
    """A network, its optimizer and its steps, compiled once for all runs of a config, whatever their seeds.

    Attributes:
      plan: the recipe in steps.
      model: the network.
      schedule: learning rate by step.
      dtype: of activations.
      one_at_a_time: whether one program must have ended before the next is enqueued.
      steps_per_dispatch: how many steps a program makes at most.
      compile_seconds: time spent compiling so far.
    """

    def __init__(self, config: Config):
        """Build everything, and compile the order of an epoch; UserError if the config does not fit its data."""
        self.config = config
        self.plan = make_plan(config)
        dataset = DATASETS[config.dataset]

        devices = jax.devices()
        mesh = jax.make_mesh(
            (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
        )
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._split_batch = NamedSharding(mesh, PartitionSpec(None, "data"))
        on_cpu = devices[0].platform == "cpu"
        # XLA's CPU devices deadlock over independent programs with collectives, such as an evaluation and an epoch.
        self.one_at_a_time = on_cpu and len(devices) > 1
        self.steps_per_dispatch = 1 if on_cpu else self.plan.steps_per_epoch

        self.dtype = jnp.dtype(
            {"auto": "float32" if on_cpu else "bfloat16"}.get(config.dtype, config.dtype)
        )
        self.model = ResNet(
            config.depth,
            num_classes=dataset.num_classes,
            width=config.width,
            shortcut=config.shortcut,
            scale_init={"uniform": uniform_scale, "ones": jax.nn.initializers.ones}[
                config.bn_scale_init
            ],
            dtype=self.dtype,
        )
        self.schedule = learning_rate_schedule(
            config.learning_rate,
            num_steps=self.plan.num_steps,
            warmup_steps=self.plan.warmup_steps,
            decay_steps=self.plan.decay_steps,
            decay_factor=config.decay_factor,
            warmup=config.warmup,
            decay=config.decay,
        )
        self._tx = make_optimizer(
            self.schedule,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self._preprocess = partial(normalize, mean=dataset.mean, std=dataset.std, dtype=self.dtype)
        self._compiled: dict[tuple[str, tuple[int, ...]], jax.stages.Compiled] = {}
        start = time.perf_counter()
        order = jax.jit(partial(epoch_order, n=len(split_ranges(config)["train"])))
        self.order = order.lower(jax.random.key(0), np.int32(0)).compile()
        self.compile_seconds = time.perf_counter() - start

    def serve(self, config: Config) -> bool:
        """Tell whether these are the programs of a config too: it may differ in its seed."""
        return dataclasses.replace(config, seed=self.config.seed) == self.config

    def init_state(self, key: jax.Array) -> TrainState:
        """Draw the parameters: a state at step 0."""
        return create_train_state(key, self.model, self._tx)

    def place(self, tree: Any) -> Any:
        """Put a copy of some arrays on every device."""
        return jax.device_put(tree, self._replicated)

    def place_rows(self, rows: np.ndarray) -> jax.Array:
        """Put indices [steps, batch] on the devices, each batch split among them."""
        return jax.device_put(rows, self._split_batch)

    def is_compiled(self, split: str, rows: np.ndarray | jax.Array) -> bool:
        """Tell whether there is a program for a split and indices of this shape already."""
        return (split, rows.shape) in self._compiled

    def compiled(self, split: str, *arguments: Any) -> jax.stages.Compiled:
        """Return `train_steps` if the split is "train", which donates its state, else `eval_steps`, compiled.

        Args:
          split: of the images.
          *arguments: those of the function, on the devices: state, images, indices and, to train, a key.
        """
        rows = arguments[2]
        if not self.is_compiled(split, rows):
            start = time.perf_counter()
            training = split == "train"
            function = partial(train_steps if training else eval_steps, preprocess=self._preprocess)
            jitted = jax.jit(
                function, donate_argnums=0 if training else (), out_shardings=self._replicated
            )
            self._compiled[split, rows.shape] = jitted.lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[split, rows.shape]


def keep_programs() -> None:
    """Let JAX keep what it compiles from one start to the next; a user's own settings of its cache hold.

    By default in ~/.cache/resnet_cifar, in a folder for each host, as XLA's CPU programs are made for one processor.
    """
    settings: dict[str, int | str] = {
        "jax_persistent_cache_min_compile_time_secs": 0,  # The parameters are drawn by some hundred small programs.
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            folder = Path(cache, "resnet_cifar", platform.node())
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except (OSError, RuntimeError):
            return  # A home that can't be written to costs the time to compile, and JAX would warn of every program.
        settings["jax_compilation_cache_dir"] = str(folder)
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
