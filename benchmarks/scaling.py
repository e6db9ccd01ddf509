"""Time one run on 1, 2, 4 and 8 virtual devices of the CPU, and in 1 and 2 processes.

python -m benchmarks.scaling --output=results/scaling_cpu.json

Each is `main.py` on synthetic images in a process of its own, or two over the loopback, in turns,
after one turn that compiles. The rate is that of the program: images of an epoch over the seconds
that its row says, without the first epoch; medians over all turns. All of them share the same
cores, so the rates show what splitting a batch costs, not what more hardware would give.
"""

import datetime
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from resnet_cifar.provenance import environment

DEPTH = flags.DEFINE_integer("depth", 20, "Depth of the network.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images of a step.")
STEPS = flags.DEFINE_integer("steps", 4, "Steps of an epoch.")
EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of a run; the first is not counted.")
REPEATS = flags.DEFINE_integer("repeats", 3, "How often each is timed.")
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write; none by default.")


class Setup(NamedTuple):
    """How a run is split."""

    processes: int
    devices: int  # Of each process.


SETUPS = (Setup(1, 1), Setup(1, 2), Setup(1, 4), Setup(1, 8), Setup(2, 1))


def main(argv: list[str]) -> None:
    """Time every setup in turns; print and write the rates."""
    del argv
    rates: dict[Setup, list[float]] = {setup: [] for setup in SETUPS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 + REPEATS.value):
            for number, setup in enumerate(SETUPS):
                workdir = Path(folder, f"{turn}.{number}")
                train(setup, workdir, programs=Path(folder, "programs"))
                rates[setup] += images_per_second(workdir) if turn else []
            print(f"turn {turn} of {REPEATS.value}", flush=True)
    rows = [row(setup, values) for setup, values in rates.items()]
    result = {
        "rows": rows,
        "depth": DEPTH.value,
        "batch_size": BATCH_SIZE.value,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.scaling", *sys.argv[1:]]),
        **environment(),
    }
    print(json.dumps(result, indent=2))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def row(setup: Setup, rates: list[float]) -> dict:
    median = statistics.median(rates)
    return {**setup._asdict(), "images_per_second": median, "all_images_per_second": rates}


def train(setup: Setup, workdir: Path, programs: Path) -> None:
    """Make one run; raises if it fails."""
    fields = {
        "depth": DEPTH.value,
        "dataset": "synthetic",
        "train_split": f"train[:{STEPS.value * BATCH_SIZE.value}]",
        "batch_size": BATCH_SIZE.value,
        "num_epochs": EPOCHS.value,
        "warmup_epochs": 0,
        "decay": "linear",
        "learning_rate": 0.01,
        "eval_every_epochs": 0,
    }
    command = [sys.executable, "main.py", "--config=configs/resnet56.py", f"--workdir={workdir}"]
    command += [f"--config.{field}={value}" for field, value in fields.items()]
    settings = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={setup.devices}",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
    }
    places: list[list[str]] = [[]]
    if setup.processes > 1:
        group = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={setup.processes}"]
        places = [[*group, f"--process_id={index}"] for index in range(setup.processes)]
    running = [
        subprocess.Popen([*command, *place], env=settings, stdout=subprocess.DEVNULL)
        for place in places
    ]
    if any([process.wait() for process in running]):
        raise RuntimeError(f"a run of {setup} failed: its errors are above")


def images_per_second(workdir: Path) -> list[float]:
    """Return the rate of each epoch but the first."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["train_seconds"] for row in rows if row["split"] == "train"]
    return [STEPS.value * BATCH_SIZE.value / value for value in seconds[1:]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    app.run(main)
