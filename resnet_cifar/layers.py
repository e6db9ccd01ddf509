"""The two layers of the networks, each with a hand-written gradient where the derived one is slow.

The gradients equal those of the plain forms up to rounding. They can be differentiated again in
reverse, or forward over reverse (Hessian-vector products), but not in forward mode alone.
`benchmarks/NOTES.md` lists what each is worth.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

EPSILON = 1e-5
MOMENTUM = 0.9  # Decay of the running statistics; flax's default is 0.99.
# What a chunk of `kernel_gradient` makes out of so many pixels stays in a CPU's caches.
PIXELS_AT_ONCE = 4096

Activations = Float[Array, "b h w c"]
Kernel = Float[Array, "k k c c2"]
Channels = Float[Array, " c"]


# He et al. 2015 (arXiv:1502.01852). flax's `he_normal` truncates.
normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def he_normal(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Initialize a kernel [..., c, c2] from a normal distribution of variance 2 / fan_in.

    The kernel is drawn as a matrix. XLA takes seconds to compile a draw with four axes for a CPU.
    The values are the same.
    """
    return normal(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


class Conv(nn.Module):
    """A convolution without bias, padded by (kernel_size - 1) / 2 on every side.

    flax's "SAME" would pad (0, 1) at stride 2, where the reference nets pad (1, 1).
    """

    filters: int
    kernel_size: int = 3
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Activations) -> Float[Array, "b h2 w2 c2"]:
        size = self.kernel_size
        kernel = self.param(
            "kernel", he_normal, (size, size, x.shape[-1], self.filters), jnp.float32
        )
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


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


class BatchNormRelu(nn.Module):
    """`relu(batch_norm(x) + shortcut)`, with the parameters and statistics of `nn.BatchNorm`."""

    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: Activations, shortcut: Activations | None = None, *, train: bool
    ) -> Activations:
        channels = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        if not train:
            return scale_add_relu(
                x, mean.value, scale * lax.rsqrt(var.value + EPSILON), bias, shortcut
            )
        y, batch_mean, batch_var = batch_norm_relu(x, scale, bias, shortcut)
        if not self.is_initializing():
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * batch_mean
            var.value = MOMENTUM * var.value + (1 - MOMENTUM) * batch_var
        return y


@jax.custom_vjp
def batch_norm_relu(
    x: Activations, scale: Channels, bias: Channels, shortcut: Activations | None
) -> tuple[Activations, Channels, Channels]:
    """Normalize by the statistics of the batch, add the shortcut, and apply ReLU.

    Forward and backward are one reduction and one element-wise pass each. The residuals are x and,
    with a shortcut, the result; both are already residuals of the neighboring convolutions.

    Returns:
      The result, and the mean and the (biased) variance of each channel, constants to the gradient.
    """
    return _batch_norm_relu_forward(x, scale, bias, shortcut)[0]


def _batch_norm_relu_forward(x, scale, bias, shortcut):
    wide = widen(x)
    mean, mean_of_squares = wide.mean((0, 1, 2)), (wide * wide).mean((0, 1, 2))
    var = jnp.maximum(mean_of_squares - mean * mean, 0.0)
    inverse = lax.rsqrt(var + EPSILON)
    y = scale_add_relu(x, mean, scale * inverse, bias, shortcut)
    return (y, mean, var), (
        x,
        mean,
        inverse,
        scale,
        bias,
        shortcut,
        None if shortcut is None else y,
    )


def _batch_norm_relu_backward(saved, cotangents):
    x, mean, inverse, scale, bias, shortcut, y = saved
    dy = cotangents[0]

    def masked(x, dy):
        centered = widen(x) - along(mean)
        positive = centered * along(scale * inverse) + along(bias) > 0
        return jnp.where(positive, widen(dy), 0), centered * along(inverse)

    if shortcut is None:
        # Recomputing the sign of y from x is cheaper than reading y, and masking dy in each pass is
        # cheaper than storing it. The barriers keep XLA from merging the two passes.
        dbias, dscale = _channel_sums(*masked(*lax.optimization_barrier((x, dy))))
        x, dy, dbias, dscale = lax.optimization_barrier((x, dy, dbias, dscale))
        wide, normalized = masked(x, dy)
    else:
        dy = jnp.where(y > 0, dy, jnp.zeros((), dy.dtype))  # Also the gradient of the shortcut.
        wide, normalized = widen(dy), (widen(x) - along(mean)) * along(inverse)
        dbias, dscale = _channel_sums(wide, normalized)
    pixels = x.size // x.shape[-1]
    dx = along(scale * inverse) * (
        wide - along(dbias / pixels) - normalized * along(dscale / pixels)
    )
    dshortcut = None if shortcut is None else dy.astype(shortcut.dtype)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype), dshortcut


def _channel_sums(wide, normalized):
    return wide.sum((0, 1, 2)), (wide * normalized).sum((0, 1, 2))


batch_norm_relu.defvjp(_batch_norm_relu_forward, _batch_norm_relu_backward)


def scale_add_relu(
    x: Activations, mean: Channels, factor: Channels, bias: Channels, shortcut: Activations | None
) -> Activations:
    """Return `relu((x - mean) * factor + bias + shortcut)`, computed in float32 at least.

    NaN stays NaN; XLA's CPU backend may drop it from a maximum.
    """
    y = (widen(x) - along(mean)) * along(factor) + along(bias)
    if shortcut is not None:
        y = y + widen(shortcut)
    # Without the barrier XLA also stores y in float32, for the next shortcut.
    return lax.optimization_barrier(jnp.where(y <= 0, jnp.zeros((), y.dtype), y).astype(x.dtype))


def widen(x: Activations) -> Activations:
    """Return x in float32, or in float64 if it is."""
    return x.astype(wide_dtype(x))


def wide_dtype(x: Activations) -> jnp.dtype:
    """Return the dtype in which to sum over x."""
    return jnp.dtype("float64" if x.dtype == jnp.float64 else "float32")


def along(channels: Channels) -> Float[Array, "1 1 1 c"]:
    """Give a value of each channel the rank of images."""
    return channels[None, None, None]
