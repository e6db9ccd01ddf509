"""The devices of a run: mesh, placement, and what depends on the kind of hardware."""

import importlib.util
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from resnet_cifar.errors import UserError


class Devices:
    """A mesh with one axis, `data`: state and images are replicated, batches are split.

    Attributes:
      count: number of devices.
      on_cpu: whether they are CPU devices.
      one_at_a_time: whether a program must end before the next is enqueued. XLA's CPU devices
        deadlock over independent programs with collectives, such as an evaluation and an epoch.
      replicated: sharding of the state and the images.
      split: sharding of indices [steps, batch].
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        """Use the given devices, by default all that JAX sees; UserError if there are none."""
        devices = list(devices or all_devices())
        self.count = len(devices)
        self.on_cpu = devices[0].platform == "cpu"
        self.one_at_a_time = self.on_cpu and self.count > 1
        mesh = jax.make_mesh((self.count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec(None, "data"))

    def replicate(self, tree: Any) -> Any:
        """Put a copy of some arrays on every device."""
        return jax.device_put(tree, self.replicated)

    def split_batch(self, rows: np.ndarray) -> jax.Array:
        """Put indices [steps, batch] on the devices, a part of each batch on each."""
        return jax.device_put(rows, self.split)

    def dtype(self, name: str) -> jnp.dtype:
        """Return the dtype of activations; "auto" is bfloat16 on accelerators, else float32."""
        return jnp.dtype({"auto": "float32" if self.on_cpu else "bfloat16"}.get(name, name))

    def steps_per_dispatch(self, steps_per_epoch: int) -> int:
        """Return how many steps to enqueue at once: an epoch, but one step on a CPU."""
        return 1 if self.on_cpu else steps_per_epoch


def all_devices() -> list[Any]:
    """Return all devices that JAX sees; UserError if it can't start the platform it was told to."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = told_to_use() or "its default platform"
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"JAX can't start {wanted} ({reason}): check the driver with nvidia-smi, or set "
            "JAX_PLATFORMS=cpu to train on the CPU"
        ) from error


def require(wanted: str) -> None:
    """Raise a UserError unless the devices are of a platform: "cpu", "gpu" or "tpu"; "" is any."""
    found = all_devices()[0].platform
    if wanted and wanted != found:
        hint = unused_gpu() or "JAX sees no such device"
        raise UserError(f"--require={wanted}, but the run would use the {found}: {hint}")


def unused_gpu() -> str:
    """Say that JAX fell back to the CPU although its CUDA plugin is installed; empty otherwise."""
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if told_to_use() or all_devices()[0].platform != "cpu":
        return ""
    if not any(importlib.util.find_spec(name) for name in plugins):
        return ""
    return "JAX's CUDA plugin is installed, but it found no GPU: check nvidia-smi"


def told_to_use() -> str:
    """Return the platforms that JAX was told to use; empty if it was not told."""
    return jax.config.values["jax_platforms"] or ""


def device_name() -> str:
    """Return the kind and the number of the devices."""
    devices = all_devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return kind if len(devices) == 1 else f"{len(devices)} x {kind}"
