"""What a result depends on besides its config: device, versions, settings of the environment."""

import dataclasses
import os
import platform
from importlib.metadata import version
from typing import Any

import jax

from resnet_cifar import __version__
from resnet_cifar.checkpoint.format import Metadata
from resnet_cifar.config import Config, with_defaults
from resnet_cifar.data import class_names, find_dataset
from resnet_cifar.devices import device_name, kernels
from resnet_cifar.errors import UserError
from resnet_cifar.native import XLA

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
# JAX's settings that can change the bits of a result, with their defaults in the default release.
JAX_DEFAULTS = {
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_softmax_custom_jvp": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_disable_most_optimizations": False,
}
ENVIRONMENT = ("NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS")


def environment(num_devices: int = 0) -> dict[str, Any]:
    """Return device, versions, and the settings that can change the bits of a result."""
    return {
        "device": device_name(num_devices),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "settings": settings(),
        "versions": versions(),
    }


def settings() -> dict[str, str]:
    """Return the settings of JAX and of the environment that differ from the defaults."""
    values = {name: jax.config.values.get(name, default) for name, default in JAX_DEFAULTS.items()}
    changed = {name: str(v) for name, v in values.items() if v != JAX_DEFAULTS[name]}
    return changed | {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute or store a result."""
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def checkpoint_metadata(config: Config, dtype: str, kernels: str = XLA) -> Metadata:
    """Return what a checkpoint needs besides its arrays to be used anywhere else."""
    dataset = find_dataset(config.dataset)
    metadata = Metadata(
        config=dataclasses.asdict(config),
        preprocessing={"mean": list(dataset.mean), "std": list(dataset.std)},
        class_names=class_names(config.dataset, config.data_dir),
        dtype=dtype,
        kernels=kernels,
        **environment(config.num_devices),
    )
    if dataset.sha256:
        metadata["images"] = {**dataset.sizes, "sha256": dataset.sha256}
    return metadata


def check_same_images(saved: Metadata, now: Metadata) -> None:
    """Raise a UserError if one's own images are not those that a checkpoint was trained on."""
    old, new = saved.get("images"), now.get("images")
    if old != new:
        raise UserError(
            f"the images of this run have changed: it began with {describe_images(old)}, and now "
            f"there are {describe_images(new)}. Restore them, or choose another --workdir"
        )


def describe_images(images: dict[str, Any] | None) -> str:
    if not images:
        return "others"
    counts = f"{images['train']:,} train and {images['test']:,} test images"
    return f"{counts} (sha256 {images['sha256'][:12]})"


def common(config: Config) -> dict[str, Any]:
    """Return what all processes of a run must have in common, in the form of JSON.

    Each may keep its data in a folder of its own.
    """
    fields = with_defaults(dataclasses.asdict(config)).items()
    here = {
        "resnet_cifar": __version__,
        "device": jax.local_devices()[0].device_kind,
        "kernels": kernels(config.width).name,
    }
    return {
        **{f"config.{name}": value for name, value in fields if name != "data_dir"},
        **here,
        **versions(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **settings(),
    }


def differences(saved: Metadata, now: Metadata) -> list[str]:
    """Return what changed since a checkpoint was saved and may change the bits of a result."""
    old, new = (flatten(there) for there in (saved, now))
    # Checkpoints from before settings were recorded lack them, and the dtype.
    recorded = [*old, *new] if "settings" in saved else old
    names = [n for n in dict.fromkeys(recorded) if old.get(n, "") != new.get(n, "")]
    return [f"{n} was {old.get(n, '')!r} and is {new.get(n, '')!r}" for n in names]


def flatten(saved: Metadata) -> dict[str, str]:
    """Return the parts of the metadata that are compared, in one level."""
    names = [n for n in ("device", "XLA_FLAGS", "dtype") if n in saved]
    kept = {name: str(saved.get(name)) for name in names}
    kept["kernels"] = saved.get("kernels", XLA)  # Older checkpoints do not say it.
    return {**saved.get("versions", {}), **kept, **saved.get("settings", {})}
