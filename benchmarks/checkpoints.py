"""Time the same epochs without checkpoints, at the default cadence, and with one after each.

python -m benchmarks.checkpoints --output=results/checkpoints_cpu.json

The network has its full size and an epoch one small step, so that saves are as frequent as
possible.
"""

import datetime
import json
import statistics
import tempfile
from pathlib import Path

import jax
from absl import app, flags, logging

from benchmarks.timing import time_epochs
from resnet_cifar.config import Config
from resnet_cifar.provenance import environment

DEPTH = flags.DEFINE_integer("depth", 56, "Depth of the network.")
STEPS = flags.DEFINE_integer("steps", 1, "Steps an epoch, of 64 images each.")
REPEATS = flags.DEFINE_integer("repeats", 3, "How often each cadence is timed, in turns.")
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write; none by default.")


def main(argv: list[str]) -> None:
    """Time twenty epochs at each cadence, in turns; print and write the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    default = Config().checkpoint_every_epochs
    seconds = {cadence: [] for cadence in (0, default, 1)}
    with tempfile.TemporaryDirectory() as programs:
        jax.config.update("jax_compilation_cache_dir", programs)
        for _ in range(REPEATS.value):
            for cadence, times in seconds.items():
                config = Config(
                    depth=DEPTH.value,
                    dataset="synthetic",
                    train_split=f"train[:{64 * STEPS.value}]",
                    batch_size=64,
                    num_epochs=22,  # The first and the last are not timed.
                    learning_rate=0.1,
                    warmup_epochs=1,
                    decay_epochs=(),
                    eval_every_epochs=0,
                    checkpoint_every_epochs=cadence,
                )
                times.append(sum(time_epochs(config)[0][:20]))
    medians = {cadence: statistics.median(times) for cadence, times in seconds.items()}
    result = {
        "cost_at_the_default_cadence": medians[default] / medians[0] - 1,
        "cost_after_every_epoch": medians[1] / medians[0] - 1,
        "seconds_of_a_save": (medians[1] - medians[0]) / 20,
        "default_cadence": default,
        "seconds_of_20_epochs": seconds,
        "depth": DEPTH.value,
        "date": datetime.date.today().isoformat(),
        **environment(),
    }
    print(json.dumps(result, indent=2))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
