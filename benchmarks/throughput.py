"""Time the step, an epoch and the whole program, beside a plain step and the device's roofline.

python -m benchmarks.throughput --depths=20,56 --batch_size=128 --output=results/throughput_cpu.json

All in one process, in turns, medians over the repeats, after one turn that is not counted:

- plain: the same network and step as flax's ImageNet example writes them (benchmarks/plain.py), on
  one batch;
- bare: `train_step` on one normalized batch;
- epoch: order, gather, augmentation and step, as the program dispatches them, metrics read;
- whole: `train_and_evaluate`, which adds events and rows. Its speed is that of all epochs but the
  first together, because the end of a single epoch is not exact: on a GPU it may be noted when the
  next has ended, too. Evaluation is timed apart, in seconds for 10,000 images;
  `seconds_of_160_epochs` adds it. `benchmarks.checkpoints` measures the cost of checkpoints.

Plain and bare are a loop of steps on a CPU, and a `lax.scan` on accelerators.
"""

import datetime
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import limits
from benchmarks.plain import plain_state, plain_train_step
from benchmarks.timing import time_epochs
from resnet_cifar import train_step
from resnet_cifar.config import Config
from resnet_cifar.data import synthetic
from resnet_cifar.provenance import environment
from resnet_cifar.trainer import Trainer

DEPTHS = flags.DEFINE_list("depths", ["20"], "Depths of the networks.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images a step.")
DTYPE = flags.DEFINE_string("dtype", "auto", "dtype of the activations: auto, float32 or bfloat16.")
STEPS = flags.DEFINE_integer("steps", 30, "Steps timed at once: those of an epoch.")
REPEATS = flags.DEFINE_integer("repeats", 5, "How often each is timed.")
ONLY = flags.DEFINE_list("only", ["plain", "bare", "epoch", "whole"], "What to time.")
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write; none by default.")


def main(argv: list[str]) -> None:
    """Time what the flags say; print a table and write a file, after every depth."""
    del argv
    logging.set_verbosity(logging.WARNING)
    # An empty cache, so that times to compile are what they say.
    with tempfile.TemporaryDirectory() as programs:
        jax.config.update("jax_compilation_cache_dir", programs)
        measure_all()


def measure_all() -> None:
    """Measure one depth after the other."""
    rows = []
    for depth in map(int, DEPTHS.value):
        rows.append(measure(depth))
        print(table(rows), flush=True)
        result = {
            "rows": rows,
            "date": datetime.date.today().isoformat(),
            "driver": driver(),
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
            **environment(),
        }
        if OUTPUT.value:
            Path(OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def measure(depth: int) -> dict:
    """Return one row: what was asked for, of one depth."""
    config = Config(
        depth=depth,
        dtype=DTYPE.value,
        dataset="synthetic",
        train_split=f"train[:{BATCH_SIZE.value * STEPS.value}]",
        batch_size=BATCH_SIZE.value,
        num_epochs=REPEATS.value + 1,
        learning_rate=0.01,
        warmup_epochs=1,
        decay_epochs=(),
        eval_every_epochs=0,
    )
    images = STEPS.value * config.batch_size
    sizes = {"train": images, "test": 2_000 if jax.default_backend() == "cpu" else 10_000}
    with (
        mock.patch.dict(synthetic.SIZES, sizes),
        mock.patch.object(synthetic, "make_images", noise),
    ):
        trainer = Trainer(config)
        row: dict = {
            "depth": depth,
            "batch_size": config.batch_size,
            "dtype": str(trainer.programs.dtype),
            "kernels": trainer.programs.kernels.name,
        }
        timers: dict[str, Callable[[], float]] = {}
        for name, make in {"plain": time_plain, "bare": time_bare, "epoch": time_epoch}.items():
            if name in ONLY.value:
                timers[name], row[f"{name}_compile_seconds"], row[f"{name}_temporary_bytes"] = make(
                    trainer
                )
        for timer in timers.values():
            timer()
        # Half of the turns before the whole program and half after it, against drift.
        times: dict[str, list[float]] = {name: [] for name in timers}

        def turns(number: int) -> None:
            for _ in range(number):
                for name, timer in timers.items():
                    times[name].append(timer())

        turns(REPEATS.value - REPEATS.value // 2)
        if "whole" in ONLY.value:
            times["whole"], evaluations = time_epochs(config)
            row["evaluation_seconds"] = statistics.median(evaluations) * 10_000 / sizes["test"]
        turns(REPEATS.value // 2)
    row["seconds"] = times
    row |= {name: images / typical(name, values) for name, values in times.items()}
    if "bare" in row:
        best = row["bare"]
        row |= {f"{name}_over_bare": row[name] / best for name in times if name != "bare"}
        row["tflops"] = best * limits.training_flops(depth) / 1e12
        row["gigabytes_per_second"] = best * limits.training_bytes(depth) / 1e9
        if roofline := limits.roofline(depth, jax.devices()[0].device_kind):
            row |= {"roofline": roofline, "bare_over_roofline": best / roofline}
    if "whole" in row:
        row["seconds_of_160_epochs"] = 160 * (48 * 1024 / row["whole"] + row["evaluation_seconds"])
    if stats := jax.devices()[0].memory_stats():
        row["peak_bytes_so_far"] = stats["peak_bytes_in_use"]
    return row


def typical(name: str, seconds: list[float]) -> float:
    """Return the seconds that stand for all turns, or for all epochs of the whole program."""
    return (statistics.mean if name == "whole" else statistics.median)(seconds)


def noise(num_classes: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise: it is quick to make, and unlike zeros not faster to compute with."""
    n, rng = synthetic.SIZES[split], np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, num_classes, n)


def time_plain(trainer: Trainer) -> tuple[Callable[[], float], float, int]:
    """Return a timer of the plain step, the seconds to compile it, its temporary bytes."""
    return repeated(
        plain_train_step,
        plain_state(jax.random.key(0), trainer.config.depth, trainer.programs.dtype),
        one_batch(trainer),
    )


def time_bare(trainer: Trainer) -> tuple[Callable[[], float], float, int]:
    """Return the same for `train_step`."""
    return repeated(
        train_step, trainer.programs.devices.replicate(trainer.init_state()), one_batch(trainer)
    )


def one_batch(trainer: Trainer) -> dict[str, jax.Array]:
    """Return a batch of normalized noise."""
    size = trainer.config.batch_size
    return {
        "image": jax.random.normal(jax.random.key(1), (size, 32, 32, 3), trainer.programs.dtype),
        "label": jnp.arange(size, dtype=jnp.int32) % 10,
    }


def repeated(step, state, batch) -> tuple[Callable[[], float], float, int]:
    """Time steps on one batch."""
    scanned = jax.default_backend() != "cpu"

    def scan(state, batch):
        return jax.lax.scan(lambda state, _: step(state, batch), state, length=STEPS.value)

    start = time.perf_counter()
    jitted = jax.jit(scan if scanned else step, donate_argnums=0)
    program = jitted.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start

    def timer() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(1 if scanned else STEPS.value):
            state, _ = program(state, batch)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return timer, compile_seconds, temporary_bytes(program)


def time_epoch(trainer: Trainer) -> tuple[Callable[[], float], float, int]:
    """Return the same for an epoch of a `Trainer`."""
    state = trainer.programs.devices.replicate(trainer.init_state())
    before = trainer.compile_seconds
    rows = np.zeros((trainer.steps_per_dispatch, trainer.config.batch_size), np.int32)
    program = trainer.program("train", state, rows)

    def timer() -> float:
        nonlocal state
        step, start = 0, time.perf_counter()
        for rows in trainer.epoch_batches(step):
            state, _ = trainer.train(state, step, rows)
            step += len(rows)
        trainer.drain()
        return time.perf_counter() - start

    return timer, trainer.compile_seconds - before, temporary_bytes(program)


def temporary_bytes(program: jax.stages.Compiled) -> int:
    """Return the bytes that a program needs besides arguments and results; 0 if unknown."""
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes if memory else 0


def driver() -> str:
    """Return the version of NVIDIA's driver, if there is one."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(
            query, capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return ""


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    columns = {
        "depth": "{:d}",
        "batch_size": "{:,d}",
        "dtype": "{}",
        "plain": "{:,.0f}",
        "bare": "{:,.0f}",
        "epoch": "{:,.0f}",
        "whole": "{:,.0f}",
        "plain_over_bare": "{:.2f}",
        "whole_over_bare": "{:.3f}",
        "tflops": "{:.3g}",
        "gigabytes_per_second": "{:,.3g}",
        "bare_over_roofline": "{:.2f}",
        "seconds_of_160_epochs": "{:,.0f}",
    }
    present = [name for name in columns if any(name in row for row in rows)]
    lines = [present, ["---"] * len(present)]
    lines += [
        [columns[name].format(row[name]) if name in row else "" for name in present] for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    app.run(main)
