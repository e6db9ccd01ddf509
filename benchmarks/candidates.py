"""Other forms of a convolution, to be used on a GPU if they prove to be faster there."""

import jax.numpy as jnp

from resnet_cifar.convolution import plain_convolve


def padded_to_eight(x, kernel, stride):
    """Convolve three channels as eight, five of them zeros."""
    more = 8 - x.shape[-1]
    return plain_convolve(
        jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))),
        jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0))),
        stride,
    )


def packed(x, kernel, stride):
    """Convolve pairs of pixels as one of twice the channels: twice the FLOPs, larger products."""
    n, h, w, c = x.shape
    c2 = kernel.shape[-1]
    wide = jnp.zeros((3, 3, 2, c, 2, c2), kernel.dtype)
    for pair in range(3):
        for p in range(2):
            for q in range(2):
                if 0 <= (column := 2 * (pair - 1) + p - q + 1) < 3:
                    wide = wide.at[:, pair, p, :, q].set(kernel[:, column])
    y = plain_convolve(x.reshape(n, h, w // 2, 2 * c), wide.reshape(3, 3, 2 * c, 2 * c2), stride)
    return y.reshape(n, h, w, c2)
