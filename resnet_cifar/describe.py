"""What there is to say about a run: before it starts, in its checkpoints and when it is done."""

import dataclasses
import datetime
import itertools
import math
import os
import platform
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_cifar.data import DATASETS, class_names, whereabouts
from resnet_cifar.run import Run
from resnet_cifar.steps import train_step


def title(run: Run) -> str:
    """Name a run in a few words."""
    return f"ResNet{run.config.depth} on {run.config.dataset}, seed {run.config.seed}"


def header(run: Run) -> list[str]:
    """Return the lines that say what runs, where, on what and for how long."""
    config, plan = run.config, run.plan
    source = whereabouts(config.dataset, config.data_dir, seed=config.seed)
    parts = f"shortcut {config.shortcut}, {parameters(run):,} parameters, {run.programs.dtype}"
    sizes = ", ".join(f"{len(data.labels):,} {split}" for split, data in run.images.items())
    return [
        f"device     {device_name()}",
        f"data       {config.dataset}, {source}: {sizes}",
        f"model      ResNet{config.depth}, {parts}",
        f"steps      {plan.num_steps:,} of {config.batch_size:,} images, {plan.steps_per_epoch:,} an epoch",
        *schedule_lines(run),
    ]


def schedule_lines(run: Run) -> list[str]:
    """Return one line for each stretch of the learning-rate schedule, with its end in steps and epochs."""
    config, plan = run.config, run.plan
    stops = [0, plan.warmup_steps, *plan.decay_steps, plan.num_steps]
    lines = []
    for start, end in itertools.pairwise(stops):
        rate = f"{np.asarray(run.programs.schedule(start)).item():g}"
        if start == 0 and config.warmup == "linear" and plan.warmup_steps:
            rate = f"rising from 0 to {config.learning_rate:g}"
        elif config.decay != "steps":
            rate = f"falling from {config.learning_rate:g} to 0, {config.decay},"
        if end > start:
            lines.append(
                f"learning rate {rate} until step {end:,} (epoch {end / plan.steps_per_epoch:g})"
            )
    return [f"{'schedule' if i == 0 else '':<10} {line}" for i, line in enumerate(lines)]


def costs(run: Run) -> list[str]:
    """Compile a training step; return the lines that say what it takes."""
    size = run.config.batch_size
    state = run.programs.place(run.init_state())
    rows = np.zeros((run.programs.steps_per_dispatch, size), np.int32)
    memory = run.compiled("train", state, rows).memory_analysis()
    batch = {
        "image": jax.ShapeDtypeStruct((size, 32, 32, 3), run.programs.dtype),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    analysis = train_step.lower(state, batch).cost_analysis() or {}
    flops = analysis.get(
        "flops", math.nan
    )  # XLA leaves out what falls on the padding of a convolution.
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, run.images)))
    more = f"{memory.temp_size_in_bytes / 1e6:,.0f} MB" if memory else "an amount not known here"
    return [
        f"compute    {flops / 1e9:,.1f} GFLOP a step, {flops / size / 1e6:,.1f} MFLOP an image, as XLA counts them",
        f"memory     {held / 1e6:,.0f} MB of images and state, and {more} in a step",
        f"compiling  {run.compile_seconds:.1f} s",
    ]


def learning_rates(run: Run) -> list[tuple[float, float]]:
    """Return points (epoch, learning rate) of the schedule, for a picture."""
    steps = np.unique(np.linspace(0, run.plan.num_steps - 1, 1000).astype(int))
    return [
        (step / run.plan.steps_per_epoch, np.asarray(run.programs.schedule(step)).item())
        for step in steps
    ]


def explanation(run: Run) -> dict[str, Any]:
    """Return what a checkpoint needs besides its arrays to be understood."""
    dataset = DATASETS[run.config.dataset]
    return {
        "config": dataclasses.asdict(run.config),
        "preprocessing": {"mean": dataset.mean, "std": dataset.std},
        "class_names": class_names(run.config.dataset, run.config.data_dir),
        **circumstances(),
    }


def changed(saved: dict[str, Any]) -> list[str]:
    """Return what is no longer as a checkpoint's explanation says, and may change the bits of a result."""
    old, new = ({**there.get("versions", {}), **there} for there in (saved, circumstances()))
    names = [name for name in new if name != "versions" and name in old and old[name] != new[name]]
    return [f"{name} was {old[name]!r} and is {new[name]!r}" for name in names]


def circumstances() -> dict[str, Any]:
    """Return what a result depends on besides its config."""
    return {
        "device": device_name(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "versions": versions(),
    }


def summary(run: Run, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a finished run from its rows."""
    by_split = {split: [row for row in rows if row["split"] == split] for split in run.images}
    seconds = sum(row["train_seconds"] for row in by_split["train"])
    return {
        "test_accuracy": by_split["test"][-1]["accuracy"],
        "test_top5_accuracy": by_split["test"][-1]["top5_accuracy"],
        "test_loss": by_split["test"][-1]["loss"],
        "epochs": {
            split: {
                "epoch": [row["epoch"] for row in own],
                "accuracy": [row["accuracy"] for row in own],
            }
            for split, own in by_split.items()
        },
        "train_seconds": seconds,
        "eval_seconds": sum(row.get("eval_seconds", 0.0) for row in rows),
        "compile_seconds": run.compile_seconds,
        "images_per_second": run.plan.num_steps * run.config.batch_size / seconds,
        "parameters": parameters(run),
        "steps": run.plan.num_steps,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **circumstances(),
        "config": dataclasses.asdict(run.config),
    }


def parameters(run: Run) -> int:
    """Return the number of trained parameters."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        partial(run.programs.model.init, train=False), jax.random.key(0), images
    )
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def device_name() -> str:
    """Return the kind and the number of the devices."""
    devices = jax.devices()
    kind = (
        f"{platform.machine()} CPU, {os.cpu_count()} cores"
        if devices[0].platform == "cpu"
        else devices[0].device_kind
    )
    return kind if len(devices) == 1 else f"{len(devices)} x {kind}"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "tensorflow-datasets",
        "numpy",
    )
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in packages
    }
