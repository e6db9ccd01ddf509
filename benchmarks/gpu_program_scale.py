"""Compile `train_steps` for several GPUs without having one, and count its collectives.

    pip install jax-cuda12-plugin jax-cuda12-pjrt  # of jax's version; no CUDA libraries needed
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_program_scale --output=results/gpu_program_scale.json

Each row has the temporary memory of a device and, for a step, the kernels and the collectives: how
many, and the bytes that a device puts into them or, of an all-gather, takes out.
"""

import datetime
import importlib.metadata
import json
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.gpu_program import GPUS, OUTPUT, target_config
from benchmarks.gpu_program_hlo import Instruction, count, parse, step_of
from resnet_cifar.data import DATASETS, Images, normalize
from resnet_cifar.epochs import train_steps
from resnet_cifar.models import ResNet
from resnet_cifar.optim import make_optimizer
from resnet_cifar.state import create_train_state

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BATCH_SIZE = 1024


class Case(NamedTuple):
    """What to compile."""

    depth: int
    devices: int = 1


CASES = (Case(56), Case(56, devices=8))


def main(argv: list[str]) -> None:
    """Compile the cases; print a line and write the file after each."""
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jax-cuda12-plugin")}
    result = {"rows": [], "date": datetime.date.today().isoformat(), "versions": versions}
    for case in CASES:
        result["rows"].append(measure(case))
        print(json.dumps(result["rows"][-1]), flush=True)
        if OUTPUT.value:
            Path(OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def measure(case: Case) -> dict:
    """Return the row of one program."""
    start = time.perf_counter()
    compiled = jax.jit(program(), donate_argnums=0).lower(*arguments(case)).compile()
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    step = step_of(*parse(text)).values()
    return {
        "gpu": GPUS["h100"].name,
        **case._asdict(),
        "batch_size": BATCH_SIZE,
        "kernels": count(text, batch_size=BATCH_SIZE // case.devices)["kernels"],
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "collectives": collectives(step),
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def program():
    """Return `train_steps` on CIFAR-10, as the program runs it."""
    mean, std = DATASETS["cifar10"].mean, DATASETS["cifar10"].std
    return partial(
        train_steps, preprocess=partial(normalize, mean=mean, std=std, dtype=jnp.bfloat16)
    )


def arguments(case: Case) -> tuple:
    """Return the shapes of its arguments: batches split, all else on every device."""
    topology = topologies.get_topology_desc(
        "h100", "cuda", target_config=target_config(GPUS["h100"]), topology=f"1x1x{case.devices}"
    )
    mesh = Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))
    model = ResNet(case.depth, dtype=jnp.bfloat16)
    tx = make_optimizer(0.1, momentum=0.9, weight_decay=1e-4)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: create_train_state(key, model, tx), key)
    n = DATASETS["cifar10"].sizes["train"]
    images = jax.eval_shape(
        lambda: Images(jnp.zeros((n, 32, 32, 3), jnp.uint8), jnp.zeros((n,), jnp.int32))
    )
    rows = jax.ShapeDtypeStruct((n // BATCH_SIZE, BATCH_SIZE), jnp.int32)
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "data"))

    def place(tree, sharding):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    return (*place((state, images), replicated), place(rows, split), place(key, replicated))


def collectives(step: Iterable[Instruction]) -> list[dict]:
    """Return the collectives of a step, by kind: their number, and the bytes of each."""
    by_name = {instruction.name: instruction for instruction in step}
    found: dict[str, list[int]] = {}
    for instruction in by_name.values():
        kind = instruction.op.removesuffix("-start")
        if kind in COLLECTIVES:
            operands = sum(by_name[name].bytes for name in instruction.operands)
            # The result of an asynchronous all-gather begins with its operand.
            result = instruction.bytes - (operands if instruction.op != kind else 0)
            found.setdefault(kind, []).append(result if kind == "all-gather" else operands)
    return [
        {"kind": kind, "number": len(sizes), "bytes": sum(sizes), "largest_bytes": max(sizes)}
        for kind, sizes in found.items()
    ]


if __name__ == "__main__":
    app.run(main)
