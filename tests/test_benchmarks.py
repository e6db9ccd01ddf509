"""The arithmetic of the benchmarks, and forms of a convolution that wait for a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.candidates import packed, padded_to_eight
from benchmarks.limits import convolutions, roofline, training_bytes, training_flops
from resnet_cifar import ResNet
from resnet_cifar.convolution import plain_convolve


@pytest.mark.parametrize(
    # Multiply-adds of inference: the literature on pruning. The rest: summed by stage, by hand.
    ("depth", "million_multiply_adds", "megaflops", "megabytes"),
    [(20, 40.55, 242.4, 5.92), (56, 125.49, 752.0, 16.93), (110, 252.89, 1516.4, 33.44)],
)
def test_what_an_image_costs(depth, million_multiply_adds, megaflops, megabytes):
    inference = sum(layer.flops for layer, _ in convolutions(depth)) / 2 + 640
    assert round(inference / 1e6, 2) == million_multiply_adds
    assert round(training_flops(depth) / 1e6, 1) == megaflops
    assert round(training_bytes(depth) / 1e6, 2) == megabytes


def test_the_convolutions_are_those_of_the_network():
    shapes = jax.eval_shape(
        lambda: ResNet(14).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    kernels = [leaf.shape for leaf in jax.tree.leaves(shapes["params"]) if len(leaf.shape) == 4]
    assert sorted(kernels) == sorted((3, 3, layer.c, layer.c2) for layer, _ in convolutions(14))


def test_the_roofline_is_that_of_the_device():
    seconds = 160 * 50_000 / roofline(56, "NVIDIA H200")
    assert round(seconds, 1) == 31.5
    assert roofline(56, "cpu") is None


@pytest.mark.slow
def test_candidates_are_the_same_convolution():
    x, kernel = (
        jax.random.normal(jax.random.key(0), (2, 6, 8, 16)),
        jax.random.normal(jax.random.key(1), (3, 3, 16, 8)),
    )
    np.testing.assert_allclose(packed(x, kernel, 1), plain_convolve(x, kernel, 1), atol=1e-4)
    x, kernel = x[..., :3], kernel[:, :, :3]
    np.testing.assert_allclose(
        padded_to_eight(x, kernel, 1), plain_convolve(x, kernel, 1), atol=1e-4
    )


@pytest.mark.slow
def test_the_command_for_throughput_measures_a_step(tmp_path):
    flags = ["--depths=8", "--batch_size=8", "--steps=1", "--repeats=1", "--only=bare"]
    output = tmp_path / "throughput.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", *flags, f"--output={output}"],
        cwd=Path(__file__).parents[1], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    (row,) = json.loads(output.read_text())["rows"]
    assert row["bare"] > 0 and row["bare_temporary_bytes"] > 0
