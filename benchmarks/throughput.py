"""Images per second of the bare jitted step and of the whole program around it, in one process.

python -m benchmarks.throughput --depth=20 --batch_size=128 --output=results/throughput_cpu.json

The bare step is `train_step` over and over on one batch that is already normalized. The whole program is
`train_and_evaluate`: order, gather, augmentation, metrics, rows, events and a checkpoint every epoch, from the end of
its first epoch to the end of its last; evaluation and compilation are left out of both.
"""

import datetime
import json
import os
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.timing import time_epochs
from resnet_cifar import train_step
from resnet_cifar.config import Config
from resnet_cifar.describe import device_name, versions
from resnet_cifar.run import Run

DEPTH = flags.DEFINE_integer("depth", 20, "Depth of the network.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images a step.")
STEPS = flags.DEFINE_integer("steps", 30, "Steps timed at once: those of an epoch.")
REPEATS = flags.DEFINE_integer("repeats", 5, "How often both are timed.")
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write; none by default.")


def main(argv: list[str]) -> None:
    """Time both, print them and their ratio, and write them where that is asked for."""
    del argv
    config = Config(
        depth=DEPTH.value,
        dataset="synthetic",
        train_split=f"train[:{BATCH_SIZE.value * STEPS.value}]",
        batch_size=BATCH_SIZE.value,
        num_epochs=REPEATS.value + 1,
        warmup_epochs=1,
        decay_epochs=(),
        eval_every_epochs=0,
        checkpoint_every_epochs=1,
    )
    # Half of the bare steps before and half after, so that a drift of the machine's speed falls on both alike.
    bare = time_bare_step(config, repeats=REPEATS.value)
    whole = [STEPS.value * config.batch_size / seconds for seconds in time_epochs(config)]
    bare += time_bare_step(config, repeats=REPEATS.value)
    result = {
        "bare_images_per_second": statistics.median(bare),
        "whole_images_per_second": statistics.median(whole),
        "whole_over_bare": statistics.median(whole) / statistics.median(bare),
        "bare_repeats": bare,
        "whole_repeats": whole,
        "depth": config.depth,
        "batch_size": config.batch_size,
        "date": datetime.date.today().isoformat(),
        "device": device_name(),
        "environment": {name: os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "XLA_FLAGS")},
        "versions": versions(),
    }
    print(json.dumps(result, indent=2))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def time_bare_step(config: Config, repeats: int) -> list[float]:
    """Return images per second of `train_step` alone, once for each repeat."""
    run = Run(config)
    state = run.place(run.init_state())
    images = jax.random.normal(jax.random.key(0), (config.batch_size, 32, 32, 3), run.dtype)
    batch = {"image": images, "label": jnp.arange(config.batch_size) % 10}
    step = train_step.lower(state, batch).compile()
    state, metrics = jax.block_until_ready(step(state, batch))
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(STEPS.value):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        rates.append(STEPS.value * config.batch_size / (time.perf_counter() - start))
    return rates


if __name__ == "__main__":
    app.run(main)
