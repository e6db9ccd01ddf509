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

from resnet_cifar import native
from resnet_cifar.errors import UserError
from resnet_cifar.native import Native
from resnet_cifar.norm_conv import LANES
from resnet_cifar.processes import wait_for_all


class Devices:
    """A mesh with one axis, `data`: state and images are replicated, batches are split.

    Attributes:
      count: number of devices.
      on_cpu: whether they are CPU devices.
      one_at_a_time: whether a program must end before the next is enqueued. XLA's CPU devices
        deadlock over independent programs with collectives, such as an evaluation and an epoch.
      replicated: sharding of the state and the images.
      split: sharding of indices [steps, batch].
      by_device: sharding of what has a row for each device.
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
        self.by_device = NamedSharding(mesh, PartitionSpec("data"))

    def replicate(self, tree: Any) -> Any:
        """Put a copy of some arrays, the same in each process, on every device."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.replicated)
        return jax.tree.map(lambda leaf: distribute(leaf, self.replicated), tree)

    def split_batch(self, rows: np.ndarray) -> jax.Array:
        """Put indices [steps, batch] on the devices, a part of each batch on each."""
        if jax.process_count() == 1:
            return jax.device_put(rows, self.split)
        return distribute(rows, self.split)

    def votes(self, vote: int) -> jax.Array:
        """Put a number of each process on its devices: [devices]."""
        return distribute(np.full(self.count, vote, np.int32), self.by_device)

    def from_primary(self, tree: Any) -> Any:
        """Put process 0's arrays on every device; in other processes only shapes and dtypes count.

        They travel as bits, so that NaN and -0.0 arrive.
        """
        if jax.process_count() == 1:
            return self.replicate(tree)

        primary = jax.process_index() == 0

        def place(leaf):
            own = np.asarray(leaf) if primary else np.zeros(leaf.shape, leaf.dtype)
            bits = own[None].view(f"u{leaf.dtype.itemsize}")
            shape = (self.count, *leaf.shape)
            return jax.make_array_from_callback(shape, self.by_device, lambda _: bits)

        def first(rows, like):
            return jax.lax.bitcast_convert_type(rows[0], like.dtype)

        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        everyone = jax.jit(
            lambda rows: jax.tree.map(first, rows, shapes), out_shardings=self.replicated
        )
        rows = jax.tree.map(place, tree)
        everyone = everyone.lower(rows).compile()
        wait_for_all()
        return everyone(rows)

    def batch_problem(self, size: int) -> str:
        """Say that a batch is no multiple of the devices, and the nearest that are; "" if it is."""
        if size % self.count == 0:
            return ""
        below = size - size % self.count
        nearest = [str(n) for n in (below, below + self.count) if n]
        return (
            f"batch_size={size} must be a multiple of the {self.count} devices: use "
            f"{' or '.join(nearest)}, or fewer devices with --config.num_devices"
        )

    def dtype(self, name: str) -> jnp.dtype:
        """Return the dtype of activations; "auto" is bfloat16 on accelerators, else float32."""
        return jnp.dtype({"auto": "float32" if self.on_cpu else "bfloat16"}.get(name, name))

    def steps_per_dispatch(self, steps_per_epoch: int) -> int:
        """Return how many steps to enqueue at once: an epoch, but one step on a CPU."""
        return 1 if self.on_cpu else steps_per_epoch


def distribute(array: Any, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has on the devices of all processes."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = distribute(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


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


def choose_devices(number: int) -> list[Any]:
    """Return the first `number` devices, equally many in each process; 0: all of them.

    Raises:
      UserError: there are fewer, or the processes can't have the same share.
    """
    found, processes = all_devices(), jax.process_count()
    if not number:
        return found
    share = number // processes
    chosen = [d for i in range(processes) for d in jax.local_devices(i)[:share]]
    if number % processes or len(chosen) < number:
        several = f", in equal shares for {processes} processes" if processes > 1 else ""
        raise UserError(
            f"config.num_devices={number} can't be had: JAX sees {len(found)}, so use 1 to "
            f"{len(found)}{several}, or 0 for all"
        )
    return chosen


def require(wanted: str) -> None:
    """Raise a UserError unless the devices are of a platform: "cpu", "gpu" or "tpu"; "" is any."""
    found = all_devices()[0].platform
    if wanted and wanted != found:
        hint = unused_gpu() or "JAX sees no such device"
        raise UserError(f"--require={wanted}, but the run would use the {found}: {hint}")


def number_of_gpus() -> int:
    """Return how many GPUs JAX sees."""
    return sum(device.platform == "gpu" for device in all_devices())


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


def kernels(width: int) -> Native:
    """Return whose kernels compute the convolutions of a network, and why.

    Native ones are for CPUs. They are built here if need be.
    """
    if all_devices()[0].platform != "cpu":
        return Native(False, "on accelerators")
    if width % LANES:
        return Native(False, f"width={width} is no multiple of {LANES}")
    return native.load()


def device_name(number: int = 0) -> str:
    """Return the kind and number of the devices that `config.num_devices` chooses; 0: all."""
    devices = choose_devices(number)
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    name = kind if len(devices) == 1 else f"{len(devices)} x {kind}"
    processes = jax.process_count()
    return name if processes == 1 else f"{name} in {processes} processes"
