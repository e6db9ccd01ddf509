"""The native unit: normalize, add the shortcut, ReLU, convolve 3x3, and sum for the next BatchNorm.

`definition` says what it computes. The kernels of `norm_conv.cc` fetch and write each activation
once, forward and backward. Second derivatives and exported programs are those of the definition.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from resnet_cifar import native
from resnet_cifar.convolution import Activations, plain_convolve
from resnet_cifar.foreign import replaced_by, split_over_devices

LANES = 16  # Channels come in vectors of so many,
COLORS = 3  # except those of the images.


class Normalized(NamedTuple):
    """`relu(scale * x + bias + shortcut)`, which the next convolution computes as it reads it.

    Attributes:
      x: float32 or bfloat16.
      affine: the scale and the bias of each channel, float32; None stands for x itself.
      shortcut: like x.
    """

    x: Activations
    affine: Float[Array, "2 c"] | None = None
    shortcut: Activations | None = None


class Convolved(NamedTuple):
    """A convolution, each channel's sum and sum of squares, and what was convolved if kept."""

    y: Float[Array, "b h2 w2 c2"]
    moments: Float[Array, "2 c2"]
    input: Activations | None


def definition(
    given: Normalized, kernel: Float[Array, "3 3 c c2"], *, stride: int = 1, keep: bool = False
) -> Convolved:
    """Return what `norm_conv` means, in plain JAX."""
    x = activation(given)
    y = plain_convolve(x, kernel.astype(x.dtype), stride)
    wide = y.astype("float32")
    moments = jnp.stack([wide.sum((0, 1, 2)), (wide * wide).sum((0, 1, 2))])
    return Convolved(y, moments, x if keep else None)


def activation(given: Activations | Normalized) -> Activations:
    """Return the array that a `Normalized` stands for, for layers that take arrays."""
    if not isinstance(given, Normalized):
        return given
    x, affine, shortcut = given
    if affine is None:
        return x
    scale, bias = affine[:, None, None, None]
    y = x.astype("float32") * scale + bias
    if shortcut is not None:
        y += shortcut.astype("float32")
    # NaN stays NaN. XLA's CPU backend may drop it from a maximum.
    return jnp.where(y <= 0, jnp.zeros((), y.dtype), y).astype(x.dtype)


def norm_conv(
    given: Normalized, kernel: Float[Array, "3 3 c c2"], *, stride: int = 1, keep: bool = False
) -> Convolved:
    """Convolve what is given by the native kernels, with padding 1.

    Args:
      given: [b, h, w, c]. c is a multiple of 16, or 3 without an affine.
      kernel: float32, rounded to the dtype of x; c2 is a multiple of 16.
      stride: 1 or 2.
      keep: whether to return what was convolved. It always is with a shortcut.

    Returns:
      The convolution in the dtype of x, and its moments in float32.

    Raises:
      TypeError or ValueError: for dtypes or shapes that don't fit each other.
      RuntimeError: there are no native kernels here.
    """
    check(given, kernel, stride)
    return unit(stride, keep or given.shortcut is not None, given, kernel)


def check(given: Normalized, kernel, stride: int) -> None:
    """Raise if the arguments of `norm_conv` don't fit each other."""
    x, affine, shortcut = given
    if x.ndim != 4 or stride not in (1, 2):
        raise ValueError(f"x must be [b, h, w, c] and stride 1 or 2, not {x.shape} and {stride}")
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(f"x must be float32 or bfloat16, not {x.dtype}")
    if shortcut is not None and affine is None:
        raise ValueError("a shortcut needs an affine")
    c, c2 = x.shape[3], kernel.shape[-1]
    if c2 % LANES or (c % LANES and (affine is not None or c != COLORS)):
        raise ValueError(f"{c} to {c2} channels: use multiples of {LANES}, or 3 for images")
    expected = {
        "kernel": (kernel, (3, 3, c, c2), jnp.float32),
        "affine": (affine, (2, c), jnp.float32),
        "shortcut": (shortcut, x.shape, x.dtype),
    }
    for name, (array, shape, dtype) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must be {shape} for x {x.shape}, not {array.shape}")
        if array is not None and array.dtype != dtype:
            raise TypeError(f"{name} must be {jnp.dtype(dtype)}, not {array.dtype}")


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unit(stride, keep, given, kernel):
    return forward(stride, keep, given, kernel)


def unit_forward(stride, keep, given, kernel):
    result = forward(stride, keep, given, kernel)
    return result, (given, kernel, result)


def unit_backward(stride, keep, saved, cotangents):
    return backward(stride, keep, *saved, cotangents)


unit.defvjp(unit_forward, unit_backward)


def plain_forward(stride, keep, given, kernel):
    return definition(given, kernel, stride=stride, keep=keep)


def plain_backward(stride, keep, given, kernel, result, cotangents):  # noqa: PLR0917
    del result  # A function of the other arguments: its tangents are already in theirs.
    return jax.vjp(partial(plain_forward, stride, keep), given, kernel)[1](cotangents)


@replaced_by(plain_forward)
def forward(stride: int, keep: bool, given: Normalized, kernel) -> Convolved:
    stored = keep and given.affine is not None
    args = without_none([given.x, kernel, *given[1:]])
    y, moments, *kept = call("forward", stride, args, 3 if stored else 2)
    return Convolved(y, moments, kept[0] if stored else given.x if keep else None)


@replaced_by(plain_backward)
def backward(stride, keep, given, kernel, result, cotangents) -> tuple[Normalized, Array]:  # noqa: PLR0917
    """Return the gradients of `given` and of the kernel."""
    (x, affine, shortcut), (y, _, inputs), (dy, dmoments, dinputs) = given, result, cotangents
    args = [x, kernel, y, dy, dmoments]
    if affine is not None:
        args += without_none([affine, inputs, dinputs])
        dkernel, *rest = call("backward", stride, args, 3 if shortcut is None else 4)
        return Normalized(*rest), dkernel
    # Such as images, whose gradient nobody asks for. XLA computes it if somebody does.
    (dkernel,) = call("backward", stride, args, 1)
    return plain_backward(stride, keep, given, kernel, result, cotangents)[0], dkernel


# The axes of arguments and results, in the order of the library. Those with n are images, the
# others float32.
ARGS = {
    "forward": ["n h w c", "i j c d", "p c", "n h w c"],
    "backward": ["n h w c", "i j c d", "n y x d", "n y x d", "p d", "p c", "n h w c", "n h w c"],
}
RESULTS = {
    "forward": ["n y x d", "p d", "n h w c"],
    "backward": ["i j c d", "n h w c", "p c", "n h w c"],
}


def call(name: str, stride: int, args: list[Array], number: int) -> list[Array]:
    """Call a native function for its first results."""
    dtype, target = args[0].dtype, native.target(f"{name}_{args[0].dtype}")
    arg_axes, result_axes = ARGS[name][: len(args)], RESULTS[name][:number]

    def function(*args):
        of = {axis: n for axes, a in zip(arg_axes, args, strict=True)
              for axis, n in zip(axes.split(), a.shape, strict=True)}  # fmt: skip
        of |= {"y": -(-of["h"] // stride), "x": -(-of["w"] // stride), "p": 2}
        shapes = [tuple(of[axis] for axis in axes.split()) for axes in result_axes]
        dtypes = [dtype if "n" in axes else jnp.float32 for axes in result_axes]
        results = list(map(jax.ShapeDtypeStruct, shapes, dtypes))
        return jax.ffi.ffi_call(target, results)(*args, stride=np.int64(stride))

    return split_over_devices(function, arg_axes, result_axes)(*args)


def without_none(arrays) -> list[Array]:
    return [a for a in arrays if a is not None]
