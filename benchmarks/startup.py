"""Time from the command to the first step, with an empty and with a warm compile cache.

python -m benchmarks.startup --depth=56 --output=results/startup_cpu.json

It starts `main.py` on synthetic images, and takes the time to the row of the first epoch, less the
time of that epoch.
"""

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from resnet_cifar.provenance import environment

DEPTH = flags.DEFINE_integer("depth", 56, "Depth of the network.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images of a step.")
STEPS = flags.DEFINE_integer(
    "steps", 1, "Steps of an epoch; on accelerators more than one, as they are one program."
)
REPEATS = flags.DEFINE_integer("repeats", 3, "How often the warm start is timed.")
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write; none by default.")


def main(argv: list[str]) -> None:
    """Time one cold start and some warm ones; print and write the seconds."""
    del argv
    with tempfile.TemporaryDirectory() as folder:
        seconds = [first_step(Path(folder), str(number)) for number in range(1 + REPEATS.value)]
    result = {
        "cold_seconds": seconds[0],
        "warm_seconds": seconds[1:],
        "depth": DEPTH.value,
        "batch_size": BATCH_SIZE.value,
        "date": datetime.date.today().isoformat(),
        **environment(),
    }
    print(json.dumps(result, indent=2))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def first_step(folder: Path, name: str) -> float:
    """Return the seconds from the start of a run to its first step."""
    fields = {
        "depth": DEPTH.value,
        "dataset": "synthetic",
        "train_split": f"train[:{STEPS.value * BATCH_SIZE.value}]",
        "batch_size": BATCH_SIZE.value,
        "num_epochs": 3,
        "warmup_epochs": 1,
        "decay_epochs": 2,
        "eval_every_epochs": 0,
    }
    command = [
        sys.executable,
        "main.py",
        "--config=configs/resnet56.py",
        f"--workdir={folder / name}",
    ]
    command += [f"--config.{field}={value}" for field, value in fields.items()]
    start = time.perf_counter()
    # One folder for all starts, empty at the first.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            if line.startswith("epoch 1 "):
                end = time.perf_counter()
                break
        else:
            raise RuntimeError("the run printed no row: its errors are above")
        process.communicate()
    row = json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[0])
    return end - start - row["train_seconds"]


if __name__ == "__main__":
    app.run(main)
