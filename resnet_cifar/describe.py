"""What a run prints about itself before it starts, and the summary it leaves at the end."""

import dataclasses
import datetime
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_cifar.checkpoint.format import Metadata
from resnet_cifar.config import Config
from resnet_cifar.data import dataset_title, shared_images, whereabouts
from resnet_cifar.devices import device_name, unused_gpu
from resnet_cifar.metrics import Row
from resnet_cifar.plan import EMA
from resnet_cifar.provenance import environment
from resnet_cifar.recipes import RECIPES, make_config
from resnet_cifar.state import TrainState
from resnet_cifar.steps import train_step
from resnet_cifar.trainer import Trainer
from resnet_cifar.variables import num_parameters


def title(trainer: Trainer) -> str:
    config = trainer.config
    return f"ResNet{config.depth} on {dataset_title(config.dataset)}, seed {config.seed}"


def header(trainer: Trainer) -> list[str]:
    """Return the lines that say what runs, on what, and for how long."""
    config, plan = trainer.config, trainer.plan
    source = whereabouts(config.dataset, config.data_dir, seed=config.seed)
    counts = {split: len(r) for split, r in plan.ranges.items()} | {"train": plan.num_train}
    sizes = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    model = f"shortcut {config.shortcut}, {num_parameters(trainer.programs.model):,} parameters"
    steps = f"{plan.num_steps:,} of {config.batch_size:,} images, {plan.steps_per_epoch:,} an epoch"
    lines = {
        "device": [device_line(trainer)],
        "warning": [text for text in (gpu_warning(), shared_images(config.dataset)) if text],
        "data": [f"{dataset_title(config.dataset)}, {source}: {sizes}"],
        "model": [f"ResNet{config.depth}, {model}, {trainer.programs.dtype}"],
        "steps": [steps],
        "split": split_lines(trainer),
        "schedule": schedule_lines(trainer) + scaling_hint(config),
    }
    return [
        f"{name if i == 0 else '':<10} {line}"
        for name, own in lines.items()
        for i, line in enumerate(own)
    ]


def device_line(trainer: Trainer) -> str:
    """Return the device, and on a CPU whose kernels compute the convolutions."""
    name, programs = device_name(trainer.config.num_devices), trainer.programs
    return f"{name}, {programs.kernels}" if programs.devices.on_cpu else name


def gpu_warning() -> str:
    advice = ", and add --require=gpu to fail instead of training on the CPU"
    return unused_gpu() and unused_gpu() + advice


def split_lines(trainer: Trainer) -> list[str]:
    """Say what is split over several devices, and how; nothing of one device."""
    size, count = trainer.config.batch_size, trainer.programs.devices.count
    if count == 1:
        return []
    return [
        f"each batch, {size // count:,} images on each of {count} devices",
        "a copy on each: parameters, optimizer, all images; whole batch: gradients, BatchNorm",
    ]


def scaling_hint(config: Config) -> list[str]:
    """Say what linear scaling (Goyal et al. 2017) would change; nothing is scaled by itself.

    A config comes from a recipe if it has the same optimizer and decay.
    """
    fields = ("learning_rate", "momentum", "nesterov", "weight_decay", "decay", "optimizer")
    for recipe in RECIPES:
        own = make_config(recipe, depth=config.depth)
        same = all(getattr(own, name) == getattr(config, name) for name in fields)
        if same and own.batch_size != config.batch_size:
            scaled = own.learning_rate * config.batch_size / own.batch_size
            return [
                f"the recipe {recipe} has {own.learning_rate:g} for batches of "
                f"{own.batch_size:,}; linear scaling would give --config.learning_rate={scaled:g}"
            ]
    return []


def schedule_lines(trainer: Trainer) -> list[str]:
    """Return one line for each segment of the schedule, with its end in steps and epochs."""
    config, plan = trainer.config, trainer.plan
    stops = [0, plan.warmup_steps, *plan.decay_steps, plan.num_steps]
    rates = trainer.learning_rates(stops)
    lines = []
    for (start, end), rate in zip(itertools.pairwise(stops), rates, strict=False):
        text = f"{rate:g}"
        if start == 0 and config.warmup == "linear" and plan.warmup_steps:
            text = f"rising from 0 to {config.learning_rate:g}"
        elif start >= plan.warmup_steps and config.decay != "steps":
            text = f"{config.decay} from {config.learning_rate:g} to 0"
        if end > start:
            lines.append(f"learning rate {text} until step {end:,} (epoch {plan.epoch(end):g})")
    return lines


def costs(trainer: Trainer) -> list[str]:
    """Compile a training step; return the lines that say what it takes."""
    size, programs = trainer.config.batch_size, trainer.programs
    state = programs.devices.replicate(trainer.init_state())
    rows = np.zeros((trainer.steps_per_dispatch, size), np.int32)
    memory = trainer.program("train", state, rows).memory_analysis()
    resident = sum(leaf.nbytes for leaf in jax.tree.leaves((state, trainer.images)))
    temporary = f"{memory.temp_size_in_bytes / 1e6:,.0f} MB" if memory else "an unknown amount"
    return [
        f"compute    {compute(trainer, state)}",
        f"memory     {resident / 1e6:,.0f} MB for images and state, {temporary} more in a step",
        f"compiling  {trainer.compile_seconds:.1f} s",
    ]


def compute(trainer: Trainer, state: TrainState) -> str:
    """Return XLA's count of the operations of a step."""
    size, programs = trainer.config.batch_size, trainer.programs
    if programs.model.remat and trainer.config.depth > 14:
        return "not counted, as XLA counts a loop over blocks as one block"
    batch = {
        "image": jax.ShapeDtypeStruct((size, 32, 32, 3), programs.dtype),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    analysis = jax.jit(train_step).lower(state, batch).cost_analysis() or {}
    flops = analysis.get("flops", math.nan)  # Without what falls on the padding of convolutions.
    each = f"{flops / size / 1e6:,.1f} MFLOP an image"
    return f"{flops / 1e9:,.1f} GFLOP a step, {each} (XLA's count)"


def learning_rates(trainer: Trainer) -> list[tuple[float, float]]:
    """Return points (epoch, learning rate) of the schedule, to be plotted."""
    steps = np.unique(np.linspace(0, trainer.plan.num_steps - 1, 1000).astype(int)).tolist()
    rates = trainer.learning_rates(steps)
    return [(trainer.plan.epoch(s), rate) for s, rate in zip(steps, rates, strict=True)]


def summary(trainer: Trainer, rows: list[Row], metadata: Metadata) -> dict[str, Any]:
    """Return the result of a finished run, whose checkpoints have this metadata."""
    plan = trainer.plan
    by_split = {split: [row for row in rows if row["split"] == split] for split in plan.scored}
    seconds = sum(row["train_seconds"] for row in by_split["train"])
    names = ("accuracy", "top5_accuracy", "loss")
    results = {
        f"test_{name}{suffix}": by_split["test" + suffix][-1][name]
        for suffix in ("", *[EMA] * plan.ema)
        for name in names
    }
    return {
        **results,
        "epochs": {
            split: {key: [row[key] for row in own] for key in ("epoch", "accuracy")}
            for split, own in by_split.items()
        },
        "train_seconds": seconds,
        "eval_seconds": sum(row.get("eval_seconds", 0.0) for row in rows),
        "compile_seconds": trainer.compile_seconds,
        "images_per_second": plan.num_steps * trainer.config.batch_size / seconds,
        "parameters": num_parameters(trainer.programs.model),
        "steps": plan.num_steps,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "dtype": str(trainer.programs.dtype),
        "kernels": trainer.programs.kernels.name,
        **environment(trainer.config.num_devices),
        **{n: value for n, value in metadata.items() if n in ("images", "init_from")},
        "config": dataclasses.asdict(trainer.config),
    }


def accuracy_text(summary: dict[str, Any]) -> str:
    """Return the test accuracy in percent, and that of the averaged weights if there are any."""
    text = f"{summary['test_accuracy']:.2%}"
    if (averaged := summary.get(f"test_accuracy{EMA}")) is not None:
        text = f"{averaged:.2%} (averaged weights; without averaging {text})"
    return text


def compiling(trainer: Trainer) -> str:
    """Say roughly how long compiling takes the first time; on a CPU it grows with the network."""
    if not trainer.programs.devices.on_cpu:
        return "compiling  up to some minutes the first time"
    depth = trainer.config.depth
    seconds = 4 + 0.2 * (min(depth, 20) if trainer.config.remat else depth)
    return f"compiling  about {seconds:.0f} s the first time"
