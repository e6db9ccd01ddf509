"""Convolutions with gradients in the forms that XLA's CPU backend is fast at."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# What a chunk of `kernel_gradient` makes out of so many pixels stays in a CPU's caches.
PIXELS_AT_ONCE = 4096

Activations = Float[Array, "b h w c"]
Kernel = Float[Array, "k k c c2"]


def plain_convolve(x: Activations, kernel: Kernel, stride: int) -> Float[Array, "b h2 w2 c2"]:
    """Convolve with a kernel of odd size, padded by half of it; has the derived gradient."""
    pad = kernel.shape[0] // 2
    return nhwc_convolution(x, kernel, (stride, stride), ((pad, pad), (pad, pad)))


convolve = jax.custom_vjp(plain_convolve, nondiff_argnums=(2,))
nhwc_convolution = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolve_forward(x, kernel, stride):
    return plain_convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride, saved, dy):
    def derived(x, kernel, dy):
        return jax.vjp(partial(plain_convolve, stride=stride), x, kernel)[1](dy)

    return lax.platform_dependent(
        *saved, dy, cpu=partial(_convolve_backward_cpu, stride), default=derived
    )


def _convolve_backward_cpu(stride, x, kernel, dy):
    """Return both gradients in forms that XLA's CPU backend is fast at.

    It runs the derived ones as a naive loop inside a `lax.scan`; outside, the kernel's gradient
    takes most of a step.
    """
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    below = size - 1 - pad
    above = [
        n + pad - 1 - stride * (m - 1) for n, m in zip(x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    dx = nhwc_convolution(
        dy,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        [(below, end) for end in above],
        lhs_dilation=(stride, stride),
    )
    # Without the barrier XLA recomputes x in the shape of the chunks.
    return dx, kernel_gradient(lax.optimization_barrier(x), dy, size, stride).astype(kernel.dtype)


def kernel_gradient(
    x: Activations, dy: Float[Array, "b h2 w2 c2"], size: int, stride: int
) -> Float[Array, "k k c c2"]:
    """Return the gradient of the kernel, in float32 or float64, as one matrix product over pixels.

    Each pixel is a row of x and a column of dy. The left matrix has, for each pixel, the `size`
    pixels of x that meet in its column: [pixels, size * c]. The right one has the `size` pixels of
    dy that meet in its row: [pixels, size * c2]. Their product has one entry for each entry of the
    kernel. The product is summed over chunks of images that fit in the cache.
    """
    (batch, h, _, c), (_, h2, w2, c2), pad = x.shape, dy.shape, size // 2
    wide = wide_dtype(x)

    def product(x, dy):
        padded = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (0, 0)))
        columns = [padded[:, :, j : j + stride * (w2 - 1) + 1 : stride] for j in range(size)]
        # Row i of the kernel takes row r of dy to row `stride * r + i - pad` of x.
        moves = [(i - pad, h - 1 - stride * (h2 - 1) - (i - pad), stride - 1) for i in range(size)]
        none = (0, 0, 0)
        rows = [lax.pad(dy, jnp.zeros((), dy.dtype), (none, move, none, none)) for move in moves]
        left = jnp.stack(columns, axis=3).reshape(-1, size * c)
        right = jnp.stack(rows, axis=3).reshape(-1, size * c2)
        return jnp.matmul(left.T, right, preferred_element_type=wide)

    chunk = max(n for n in range(1, max(1, PIXELS_AT_ONCE // (h * w2)) + 1) if batch % n == 0)
    # A chunk takes every n-th image: a batch that is split among devices stays where it is.
    chunks = [a.reshape(chunk, batch // chunk, *a.shape[1:]) for a in (x, dy)]

    def add(i, total):
        return total + product(*(lax.dynamic_index_in_dim(a, i, 1, keepdims=False) for a in chunks))

    total = lax.fori_loop(0, batch // chunk, add, jnp.zeros((size * c, size * c2), wide))
    return total.reshape(size, c, size, c2).transpose(2, 0, 1, 3)


convolve.defvjp(_convolve_forward, _convolve_backward)


def wide_dtype(x: Activations) -> jnp.dtype:
    """Return the dtype in which to sum over x."""
    return jnp.dtype("float64" if x.dtype == jnp.float64 else "float32")
