"""Compile the training programs for GPUs without having one, and count kernels and bytes.

    pip install jax-cuda12-plugin jax-cuda12-pjrt  # of jax's version; no CUDA libraries needed
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_program --output=results/gpu_program.json

- train, eval: an epoch of `train_steps`, a test set of `eval_steps`, as the program runs them;
- bare: a scan of `train_step` on one batch;
- plain: the same of the plain flax step in benchmarks/plain.py.

Counts come from the optimized program. They are not timings: cuDNN's kernels, their workspaces and
the caches are unknown without a device.
"""

import datetime
import importlib.metadata
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies

from benchmarks.gpu_program_hlo import count, launches
from benchmarks.plain import plain_state, plain_train_step
from resnet_cifar.data import DATASETS, Images, normalize
from resnet_cifar.epochs import eval_steps, train_steps
from resnet_cifar.models import ResNet
from resnet_cifar.optim import make_optimizer
from resnet_cifar.state import create_train_state
from resnet_cifar.steps import train_step

PROGRAMS = ("train", "eval", "bare", "plain")


class Gpu(NamedTuple):
    """The figures of a GPU that XLA's compiler asks for."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    cores: int  # float32 lanes in a multiprocessor.
    clock_ghz: float  # Boost.
    bandwidth: float  # Bytes/s.
    l2: int  # MiB
    memory: int  # GB
    threads: int  # In a multiprocessor.
    shared: int  # KiB in a multiprocessor; a block may have 1 KiB less.


# NVIDIA's white papers of the H100, A100 and GA102, and, from `threads` on, the table of technical
# specifications per compute capability in the CUDA C++ Programming Guide.
GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 3.35e12, 50, 80, 2048, 228),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 2.039e12, 40, 80, 2048, 164),
    "rtx3080": Gpu("NVIDIA GeForce RTX 3080", (8, 6), 68, 128, 1.71, 0.76e12, 5, 10, 1536, 100),
}

DEPTHS = flags.DEFINE_list("depths", ["20", "56", "110"], "Depths of the networks.")
DEVICES = flags.DEFINE_list("gpus", list(GPUS), "GPUs to compile for.")
ONLY = flags.DEFINE_list("only", list(PROGRAMS), "Programs to compile.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1024, "Images a step.")
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "dtype of the activations: bfloat16 or float32.")
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write; none by default.")


def main(argv: list[str]) -> None:
    """Compile what the flags say; print a line and write the file after every program."""
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for gpu in DEVICES.value:
        for depth in map(int, DEPTHS.value):
            for program in ONLY.value:
                rows.append(measure(gpu, depth, program, BATCH_SIZE.value, DTYPE.value))
                print(json.dumps(rows[-1]), flush=True)
                if OUTPUT.value:
                    write(rows, Path(OUTPUT.value))


def write(rows: list[dict], path: Path) -> None:
    """Write rows with what they depend on."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jax-cuda12-plugin")}
    result = {"rows": rows, "date": datetime.date.today().isoformat(), "versions": versions}
    path.write_text(json.dumps(result, indent=2) + "\n")


def measure(gpu: str, depth: int, program: str, batch_size: int, dtype: str) -> dict:
    """Return the row of one program: its counts for a step, and its temporary memory."""
    function, *arguments = build(program, depth, batch_size, jnp.dtype(dtype))
    donated = () if program == "eval" else 0
    here = placement(gpu)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), arguments
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as dump:
        lowered = jax.jit(function, donate_argnums=donated).lower(*arguments)
        compiled = lowered.compile({"xla_dump_to": dump})
        (thunks,) = Path(dump).glob("*.thunk_sequence_after_thunk_passes.txt")
        in_a_step = {"launches": launches(thunks.read_text())}
    memory = compiled.memory_analysis()
    return {
        "gpu": GPUS[gpu].name,
        "depth": depth,
        "program": program,
        "batch_size": batch_size,
        "dtype": dtype,
        **count(compiled.as_text() or "", batch_size=batch_size),
        **in_a_step,
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def build(program: str, depth: int, batch_size: int, dtype: jnp.dtype) -> tuple:
    """Return a program and the shapes of its arguments."""
    shape = jax.ShapeDtypeStruct
    state = jax.eval_shape(
        lambda key: create_train_state(
            key, ResNet(depth, dtype=dtype), make_optimizer(0.1, momentum=0.9, weight_decay=1e-4)
        ),
        jax.random.key(0),
    )
    if program in ("train", "eval"):
        cifar10 = DATASETS["cifar10"]
        preprocess = partial(normalize, mean=cifar10.mean, std=cifar10.std, dtype=dtype)
        n = cifar10.sizes["train" if program == "train" else "test"]
        images = jax.eval_shape(
            lambda: Images(jnp.zeros((n, 32, 32, 3), jnp.uint8), jnp.zeros((n,), jnp.int32))
        )
        if program == "train":
            rows = shape((n // batch_size, batch_size), jnp.int32)
            key = jax.eval_shape(lambda: jax.random.key(0))
            return partial(train_steps, preprocess=preprocess), state, images, rows, key
        rows = shape((-(-n // batch_size), batch_size), jnp.int32)
        return partial(eval_steps, preprocess=preprocess), state, images, rows
    step = train_step
    if program == "plain":
        step = plain_train_step
        state = jax.eval_shape(lambda key: plain_state(key, depth, dtype), jax.random.key(0))
    batch = {
        "image": shape((batch_size, 32, 32, 3), dtype),
        "label": shape((batch_size,), jnp.int32),
    }
    steps = DATASETS["cifar10"].sizes["train"] // batch_size

    def scan(state, batch):
        return jax.lax.scan(lambda state, _: step(state, batch), state, length=steps)

    return scan, state, batch


def placement(gpu: str) -> jax.sharding.Sharding:
    """Return the placement on a GPU to compile for, which can't run anything."""
    topology = topologies.get_topology_desc(
        gpu, "cuda", target_config=target_config(GPUS[gpu]), topology="1x1x1"
    )
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


def target_config(gpu: Gpu) -> str:
    """Describe a GPU, its CUDA and its cuDNN as XLA's protocol buffer."""
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.cores}
  clock_rate_ghz: {gpu.clock_ghz}
  memory_bandwidth: {gpu.bandwidth:.0f}
  l2_cache_size: {gpu.l2 << 20}
  device_memory_size: {gpu.memory * 10**9}
  threads_per_core_limit: {gpu.threads}
  shared_memory_per_core: {gpu.shared << 10}
  shared_memory_per_block_optin: {gpu.shared - 1 << 10}
  shared_memory_per_block: {48 << 10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_block_limit: 1024
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 patch: 0 }}
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{gpu.name}"
"""


if __name__ == "__main__":
    app.run(main)
