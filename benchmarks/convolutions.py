"""Time the three products of every distinct convolution of the family, one by one.

python -m benchmarks.convolutions --batch_size=128 --output=results/convolutions_cpu.json

Each is timed as `resnet_cifar.layers` computes it, and the kernel's gradient also as XLA derives
it. On accelerators two more forms of the 16-channel stage are timed: the stem with its input padded
to 8 channels, and pairs of pixels packed into 32 channels.
"""

import datetime
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path

import jax
from absl import app, flags

from benchmarks.candidates import packed, padded_to_eight
from benchmarks.limits import DEVICES, Convolution, convolutions
from resnet_cifar.convolution import convolve, plain_convolve
from resnet_cifar.provenance import environment

BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images.")
DTYPE = flags.DEFINE_string("dtype", "auto", "auto, float32 or bfloat16.")
REPEATS = flags.DEFINE_integer("repeats", 7, "How often each is timed.")
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write; none by default.")


def main(argv: list[str]) -> None:
    """Time each, print a line and write the file."""
    del argv
    on_cpu = jax.default_backend() == "cpu"
    dtype = {"auto": "float32" if on_cpu else "bfloat16"}.get(DTYPE.value, DTYPE.value)
    rows = []
    for layer in dict.fromkeys(layer for layer, _ in convolutions(14)):
        forms = {"": convolve} | (
            {"derived_": plain_convolve} if on_cpu else {}
        )  # On a GPU they are the same.
        if not on_cpu and layer.c == 3:
            forms["padded_"] = padded_to_eight
        if not on_cpu and layer.c == layer.c2 == 16:
            forms["packed_"] = packed
        row = {**layer._asdict(), "gflops": layer.flops * BATCH_SIZE.value / 1e9}
        for name, form in forms.items():
            row |= {
                name + product: s
                for product, s in measure(layer, form, dtype, copies=1 if on_cpu else 20).items()
            }
        if limits := DEVICES.get(jax.devices()[0].device_kind):
            row["roofline"] = (
                2 * BATCH_SIZE.value * (layer.inputs + layer.outputs) / limits.bandwidth
            )
        rows.append(row)
        print(json.dumps(row), flush=True)
        write(rows, dtype)


def write(rows: list[dict], dtype: str) -> None:
    """Write the file, if there is to be one."""
    result = {
        "batch_size": BATCH_SIZE.value,
        "dtype": dtype,
        "rows": rows,
        "date": datetime.date.today().isoformat(),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        **environment(),
    }
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def measure(layer: Convolution, form, dtype: str, copies: int) -> dict[str, float]:
    """Return the seconds of each product; one program makes many, with different inputs."""
    keys = jax.random.split(jax.random.key(0), 3)
    size = layer.size // layer.stride
    x = jax.random.normal(
        keys[0], (copies, BATCH_SIZE.value, layer.size, layer.size, layer.c), dtype
    )
    kernel = jax.random.normal(keys[1], (copies, 3, 3, layer.c, layer.c2), dtype)
    dy = jax.random.normal(keys[2], (copies, BATCH_SIZE.value, size, size, layer.c2), dtype)
    convolution = (
        partial(form, stride=layer.stride)
        if form is not convolve
        else lambda x, k: form(x, k, layer.stride)
    )
    products = {
        "forward": lambda x, kernel, dy: convolution(x, kernel),
        "input_gradient": lambda x, kernel, dy: jax.vjp(lambda x: convolution(x, kernel), x)[1](dy),
        "kernel_gradient": lambda x, kernel, dy: jax.vjp(
            lambda kernel: convolution(x, kernel), kernel
        )[1](dy),
    }
    if layer.c == 3:
        del products["input_gradient"]
    inputs = [[a[i] for i in range(copies)] for a in (x, kernel, dy)]
    return {name: seconds(product, inputs) / copies for name, product in products.items()}


def seconds(product, inputs) -> float:
    """Return the median time of a program that makes the product of each of the inputs."""
    program = jax.jit(lambda inputs: [product(*each) for each in zip(*inputs, strict=True)])
    jax.block_until_ready(program(inputs))
    times = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(program(inputs))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    app.run(main)
