"""What rematerialization saves and costs, a network as depth x width x batch.

    python -m benchmarks.remat --networks=20x16x128,1202x16x8 --output=results/remat_cpu.json
    JAX_PLATFORMS=cpu python -m benchmarks.remat --gpu=h100 --networks=56x16x1024,56x64x1024 \
        --output=results/remat_h100.json

The first times steps on the device, in turns. The second only compiles, for a GPU that is not there
(see gpu_program.py). Networks above `DEEPEST_PLAIN` are only measured with rematerialization: the
program of ResNet1202 without it did not compile within ten minutes.
"""

import datetime
import json
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.gpu_program import GPUS, OUTPUT, placement
from resnet_cifar.models import ResNet
from resnet_cifar.optim import make_optimizer
from resnet_cifar.provenance import environment
from resnet_cifar.state import TrainState, create_train_state
from resnet_cifar.steps import train_step

DEEPEST_PLAIN = 200

NETWORKS = flags.DEFINE_list("networks", ["20x16x128"], "Depth x width x batch.")
GPU = flags.DEFINE_enum("gpu", "", ["", *GPUS], "Compile for this GPU, and time nothing.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Turns of three steps.")


def main(argv: list[str]) -> None:
    """Measure, print and write every network."""
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for network in NETWORKS.value:
        measured = measure(*map(int, network.split("x")))
        rows += measured
        print("\n".join(map(json.dumps, measured)), flush=True)
        where = {"gpu": GPUS[GPU.value].name} if GPU.value else {}
        result = {"rows": rows, **where, "date": datetime.date.today().isoformat(), **environment()}
        if OUTPUT.value:
            Path(OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def measure(depth: int, width: int, batch_size: int) -> list[dict]:
    """Return a row without, unless it is too deep, and one with rematerialization."""
    rows, programs, states = [], [], []
    dtype = jnp.bfloat16 if GPU.value else jnp.float32
    batch = {
        "image": jnp.ones((batch_size, 32, 32, 3), dtype),
        "label": jnp.arange(batch_size) % 10,
    }
    for remat in (False, True) if depth <= DEEPEST_PLAIN else (True,):
        model = ResNet(depth, width=width, dtype=dtype, remat=remat)
        states.append(new_state(model))
        arguments = (states[-1], batch)
        if GPU.value:
            arguments = jax.tree.map(partial(placed, placement(GPU.value)), arguments)
        start = time.perf_counter()
        programs.append(jax.jit(train_step, donate_argnums=0).lower(*arguments).compile())
        memory = programs[-1].memory_analysis()
        rows.append(
            {
                "depth": depth,
                "width": width,
                "batch_size": batch_size,
                "dtype": dtype.__name__,
                "remat": remat,
                "temporary_bytes": memory.temp_size_in_bytes if memory else None,
                "compile_seconds": time.perf_counter() - start,
            }
        )
    if not GPU.value:
        for row, seconds in zip(rows, time_in_turns(programs, states, batch), strict=True):
            row["seconds"] = seconds
            row["images_per_second"] = 3 * batch_size / statistics.median(seconds)
    return rows


def placed(device: jax.sharding.Sharding, leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def new_state(model: ResNet) -> TrainState:
    """Return an initial state; only its shapes to compile for another device."""

    def make() -> TrainState:
        optimizer = make_optimizer(0.1, momentum=0.9, weight_decay=1e-4)
        return create_train_state(jax.random.key(0), model, optimizer)

    return jax.eval_shape(make) if GPU.value else make()


def time_in_turns(programs: list, states: list[TrainState], batch: dict) -> list[list[float]]:
    """Return the seconds of each turn of three steps, of each program."""
    times: list[list[float]] = [[] for _ in programs]
    for _ in range(REPEATS.value + 1):
        for i, program in enumerate(programs):
            start = time.perf_counter()
            for _ in range(3):
                states[i], _ = program(states[i], batch)
            jax.block_until_ready(states[i])
            times[i].append(time.perf_counter() - start)
    return [seconds[1:] for seconds in times]


if __name__ == "__main__":
    app.run(main)
