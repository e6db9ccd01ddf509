"""Convolutions have the gradients of the plain form, and are fast in a scan."""

import time

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, normal

from resnet_cifar.convolution import convolve, plain_convolve

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize(
    ("size", "stride", "h", "w", "dtype"),
    [
        (3, 1, 32, 32, "bfloat16"),
        (3, 1, 32, 32, "float32"),
        (3, 2, 16, 16, "float32"),
        (3, 2, 9, 8, "bfloat16"),
        (1, 2, 8, 7, "float32"),
        (5, 3, 7, 11, "float32"),
    ],
)
def test_gradients_of_a_convolution(size, stride, h, w, dtype):
    x, kernel = normal(0, 6, h, w, 3, dtype=dtype), normal(1, size, size, 3, 5, dtype=dtype)
    dy = normal(2, 6, -(-h // stride), -(-w // stride), 5, dtype=dtype)
    got, expected = (
        jax.jit(
            lambda x, kernel, f=f: jax.vjp(lambda x, kernel: f(x, kernel, stride), x, kernel)[1](dy)
        )(x, kernel)
        for f in (convolve, plain_convolve)
    )
    assert_close(got, expected, dtype)


@pytest.mark.parametrize("batch", [1, 7, 12])
def test_gradient_of_a_kernel_whatever_the_batch(batch):
    """At 32x32 a chunk has up to 4 images."""
    x, kernel = normal(0, batch, 32, 32, 4), normal(1, 3, 3, 4, 4)
    got, expected = (
        jax.jit(jax.grad(lambda k, f=f: jnp.sin(f(x, k, 1)).sum()))(kernel)
        for f in (convolve, plain_convolve)
    )
    assert_close(got, expected)


def test_a_split_batch_has_the_same_gradient():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel = normal(0, 16, 32, 32, 4), normal(1, 3, 3, 4, 4)
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    compiled = (
        jax.jit(jax.grad(lambda k, x: jnp.sin(convolve(x, k, 1)).sum()))
        .lower(kernel, split)
        .compile()
    )
    assert "all-gather" not in compiled.as_text()  # The images stay on their devices.
    assert_close(
        compiled(jax.device_put(kernel, jax.NamedSharding(mesh, jax.P())), split),
        jax.jit(jax.grad(lambda k: jnp.sin(plain_convolve(x, k, 1)).sum()))(kernel),
    )


def test_a_scanned_convolution_is_not_slow_on_a_cpu():
    """XLA's own gradients are some 30 times slower in a scan."""
    x, kernel = normal(0, 32, 32, 32, 16), normal(1, 3, 3, 16, 16)

    def step(kernel, _):
        return kernel - 0.1 * jax.grad(lambda k: (convolve(convolve(x, k, 1), k, 1) ** 2).mean())(
            kernel
        ), None

    def seconds(program):
        compiled = program.lower(kernel).compile()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(compiled(kernel))
            times.append(time.perf_counter() - start)
        return min(times)

    scanned = seconds(jax.jit(lambda k: jax.lax.scan(step, k, None, length=4)))
    assert scanned < 4 * 5 * seconds(jax.jit(lambda k: step(k, None)))
