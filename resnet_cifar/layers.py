"""The two layers of the networks, each with a hand-written gradient where the derived one is slow.

The gradients equal those of the plain forms up to rounding. They can be differentiated again in
reverse, or forward over reverse (Hessian-vector products), but not in forward mode alone.
`benchmarks/NOTES.md` lists what each is worth.

With `native=True` a convolution is the fused unit of `norm_conv.py`. It returns a `Convolved`, from
which BatchNormRelu makes a `Normalized`, which the next convolution computes as it reads it.
"""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resnet_cifar.convolution import Activations, convolve, wide_dtype
from resnet_cifar.norm_conv import Convolved, Normalized, activation, norm_conv

EPSILON = 1e-5
MOMENTUM = 0.9  # Decay of the running statistics; flax's default is 0.99.
STACKED = re.compile(r"stage\d_blocks")  # Name of a stage's equal blocks with `remat`.

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

    Attributes:
      native: use the native unit where the kernel is 3x3.
      keep_input: let the native unit store what it convolves, for `input_of`.
    """

    filters: int
    kernel_size: int = 3
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    native: bool = False
    keep_input: bool = False

    @nn.compact
    def __call__(self, x: Activations | Normalized) -> Float[Array, "b h2 w2 c2"] | Convolved:
        given = x if isinstance(x, Normalized) else Normalized(x.astype(self.dtype))
        size = self.kernel_size
        kernel = self.param(
            "kernel", he_normal, (size, size, given.x.shape[-1], self.filters), jnp.float32
        )
        if self.native and size == 3:
            return norm_conv(given, kernel, stride=self.stride, keep=self.keep_input)
        return convolve(activation(given), kernel.astype(self.dtype), self.stride)


def input_of(y: Float[Array, "b h2 w2 c2"] | Convolved, x: Activations | Normalized) -> Activations:
    """Return x as an array, where y is its convolution."""
    return y.input if isinstance(y, Convolved) and y.input is not None else activation(x)


class BatchNormRelu(nn.Module):
    """`relu(batch_norm(x) + shortcut)`, with the parameters and statistics of `nn.BatchNorm`."""

    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self,
        x: Activations | Convolved,
        shortcut: Activations | None = None,
        *,
        train: bool,
    ) -> Activations | Normalized:
        channels = ((x.y if isinstance(x, Convolved) else x).shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        statistics = mean.value, var.value
        if isinstance(x, Convolved):
            if train:
                statistics = batch_statistics(x)
            factor = scale * lax.rsqrt(statistics[1] + EPSILON)
            y = Normalized(x.y, jnp.stack([factor, bias - statistics[0] * factor]), shortcut)
        elif train:
            y, *statistics = batch_norm_relu(x, scale, bias, shortcut)
        else:
            factor = scale * lax.rsqrt(var.value + EPSILON)
            y = scale_add_relu(x, mean.value, factor, bias, shortcut)
        if train and not self.is_initializing():
            batch_mean, batch_var = lax.stop_gradient(statistics)
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * batch_mean
            var.value = MOMENTUM * var.value + (1 - MOMENTUM) * batch_var
        return y


def batch_statistics(x: Convolved) -> tuple[Channels, Channels]:
    """Return the mean and the (biased) variance of each channel."""
    mean, mean_of_squares = x.moments / (x.y.size // x.y.shape[-1])
    return mean, jnp.maximum(mean_of_squares - mean * mean, 0.0)


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


def along(channels: Channels) -> Float[Array, "1 1 1 c"]:
    """Give a value of each channel the rank of images."""
    return channels[None, None, None]
