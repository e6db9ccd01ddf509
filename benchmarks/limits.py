"""The cost of a network by arithmetic, and the roofline of a device.

Per image, in training: the multiply-adds of the three products of every convolution, and the bytes
that pass the device's memory if convolutions are opaque kernels, everything between two of them is
fused perfectly, activations are bfloat16, and no access hits a cache. A program that fuses a
convolution with its neighbors, or keeps activations in a cache, moves less.
"""

from typing import NamedTuple


class Convolution(NamedTuple):
    """The shape of a 3x3 convolution."""

    size: int  # Height and width of the input.
    c: int  # Channels of the input.
    c2: int  # Channels of the output.
    stride: int = 1

    @property
    def flops(self) -> int:
        """Return the FLOPs of one product (forward or either gradient) for one image."""
        return 2 * 9 * self.c * self.outputs

    @property
    def outputs(self) -> int:
        """Return the number of output elements of one image."""
        return (self.size // self.stride) ** 2 * self.c2

    @property
    def inputs(self) -> int:
        """Return the number of input elements of one image."""
        return self.size**2 * self.c


class Device(NamedTuple):
    """Sustained bytes/s and bfloat16 FLOP/s of a device, with their source."""

    bandwidth: float
    flops: float
    source: str


DEVICES = {
    "NVIDIA H200": Device(
        4.3e12,
        790e12,
        "reached by large copies and matrix products; datasheet: 4.8 TB/s, 990 TFLOP/s",
    ),
    "NVIDIA H100 80GB HBM3": Device(3.35e12, 990e12, "datasheet"),
    "NVIDIA A100-SXM4-80GB": Device(2.0e12, 312e12, "datasheet"),
    "NVIDIA GeForce RTX 3080": Device(0.76e12, 60e12, "datasheet"),
}


def convolutions(depth: int) -> list[tuple[Convolution, bool]]:
    """Return the convolutions of a network, and whether a shortcut is added after each."""
    layers = [(Convolution(32, 3, 16), False)]
    for stage in range(3):
        size, c = 32 >> stage, 16 << stage
        for block in range((depth - 2) // 6):
            down = stage > 0 and block == 0
            layers.append(
                (Convolution(size * 2, c // 2, c, 2) if down else Convolution(size, c, c), False)
            )
            layers.append((Convolution(size, c, c), True))
    return layers


def training_flops(depth: int) -> int:
    """Return the FLOPs of training on one image, without the gradient of the image."""
    head = 3 * 2 * 64 * 10
    return (
        sum(3 * layer.flops for layer, _ in convolutions(depth))
        - convolutions(depth)[0][0].flops
        + head
    )


def training_bytes(depth: int) -> int:
    """Return the bytes that training on one image moves.

    For a convolution of x to y, forward: the convolution reads x and writes y, the statistics read
    y, the normalization reads y and writes its result. Backward: the statistics read y and its
    gradient, the normalization reads both and writes one, and each of the two products reads or
    writes an x and a y.

    An added shortcut costs four more: forward reads it; the backward statistics read the sum for
    its sign, read a gradient that is a sum of two, and write the shortcut's gradient, which the
    normalization then reads in place of the incoming one.
    """
    stem = convolutions(depth)[0][0]
    elements = -stem.inputs - stem.outputs  # No gradient of the image.
    for layer, adds in convolutions(depth):
        x, y = layer.inputs, layer.outputs
        elements += (x + y) + y + 2 * y + 2 * y + 3 * y + 2 * (x + y) + 4 * y * adds
    return 2 * elements


def roofline(depth: int, device: str) -> float | None:
    """Return the images/s that memory and arithmetic allow; None if the device is unknown."""
    if device not in DEVICES:
        return None
    limits = DEVICES[device]
    return min(limits.bandwidth / training_bytes(depth), limits.flops / training_flops(depth))
