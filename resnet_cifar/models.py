"""The CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2) as flax.linen modules."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from resnet_cifar.convolution import Activations
from resnet_cifar.layers import EPSILON, MOMENTUM, BatchNormRelu, Conv, he_normal, input_of
from resnet_cifar.norm_conv import Normalized, activation


def uniform_scale(key, shape, dtype=jnp.float32) -> Array:
    """Initialize BatchNorm scales from U[0, 1), as the card's run did (Composer's `bn_uniform`)."""
    return nn.initializers.uniform(1.0)(key, shape, dtype)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, the shortcut is of kind A or B.

    A: every second pixel, and zeros for the new channels (no parameters; the paper's CIFAR nets).
    B: a strided 1x1 convolution and BatchNorm.
    """

    filters: int
    stride: int = 1
    shortcut: str = "A"
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: DTypeLike = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(
        self, x: Activations | Normalized, *, train: bool
    ) -> Float[Array, "b h2 w2 c2"] | Normalized:
        conv = partial(Conv, dtype=self.dtype, native=self.native)
        norm_relu = partial(BatchNormRelu, scale_init=self.scale_init)

        y = conv(self.filters, stride=self.stride, keep_input=True, name="conv1")(x)
        shortcut = input_of(y, x)
        y = norm_relu(name="bn1")(y, train=train)
        y = conv(self.filters, name="conv2")(y)

        if shortcut.shape[-1] != self.filters:
            if self.shortcut == "A":
                shortcut = shortcut[:, :: self.stride, :: self.stride]
                shortcut = pad_channels(shortcut, self.filters)
            else:
                one_by_one = partial(conv, kernel_size=1, stride=self.stride)
                shortcut = one_by_one(self.filters, name="shortcut_conv")(shortcut)
                shortcut = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=MOMENTUM,
                    epsilon=EPSILON,
                    scale_init=self.scale_init,
                    dtype=self.dtype,
                    name="shortcut_bn",
                )(shortcut)
        return norm_relu(name="bn2")(y, shortcut, train=train)


class ResNet(nn.Module):
    """A ResNet for 32x32 images: a stem, three stages of n blocks, and a linear head.

    The stages have 1, 2 and 4 times `width` filters. `model.apply(variables, images, train=False)`
    returns the logits, [b, classes] in float32, of normalized images [b, h, w, c].

    Attributes:
      depth: 6n + 2 layers with n >= 1: 8, 14, 20, 32, 44, 56, 110, 1202, ...
      num_classes: length of the logits.
      width: filters of the stem and of the first stage; 16 in the paper.
      shortcut: "A" (no parameters, the paper's) or "B" (1x1 convolution and BatchNorm).
      scale_init: initializer of the BatchNorm scales, `nn.initializers.ones` or `uniform_scale`.
      dtype: of activations. Parameters, batch statistics and logits are float32.
      remat: store only the input of a block for the backward pass, which computes the rest again
        (Chen et al. 2016, arXiv:1604.06174). Takes less memory and more time. The first block of
        each stage is stored whole. The others are a loop, which compiles as fast at any depth.
        Their variables are stacked: "stage1_blocks", with a leading axis for the blocks 2 to n, in
        place of "stage1_block2", ... (`stack_blocks` and `unstack_blocks` convert). Blocks have no
        intermediate outputs that flax can capture.
      native: use the kernels of `norm_conv.cc`. They need a CPU with AVX2, a multiple of 16 as
        `width`, and float32 or bfloat16. The network and its gradients are the same. `jax.export`
        replaces them by plain JAX.
    """

    depth: int
    num_classes: int = 10
    width: int = 16
    shortcut: str = "A"
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    native: bool = False

    def __post_init__(self):
        if problem := depth_problem(self.depth):
            raise ValueError(problem)
        if self.shortcut not in ("A", "B"):
            raise ValueError(f'shortcut={self.shortcut!r} is unknown: use "A" or "B"')
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        """Return the float32 logits of normalized images; `train` updates `batch_stats`."""
        x = Conv(self.width, dtype=self.dtype, native=self.native, name="stem_conv")(images)
        x = BatchNormRelu(scale_init=self.scale_init, name="stem_bn")(x, train=train)
        for stage in range(3):
            block = partial(
                ResidualBlock,
                filters=self.width * 2**stage,
                shortcut=self.shortcut,
                scale_init=self.scale_init,
                dtype=self.dtype,
                native=self.native,
            )
            name, n = f"stage{stage + 1}_block", (self.depth - 2) // 6
            x = block(stride=2 if stage > 0 else 1, name=f"{name}1")(x, train=train)
            if self.remat and n > 1:
                x = rematerialize(block(name=f"{name}s"), n - 1, x, train=train)
                continue
            for i in range(2, n + 1):
                x = block(name=f"{name}{i}")(x, train=train)
        x = jnp.mean(activation(x), axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=he_normal, name="head")(x)


def rematerialize(
    block: ResidualBlock, n: int, x: Activations | Normalized, *, train: bool
) -> Activations | Normalized:
    """Apply n equal blocks in a loop that stores only their inputs.

    Without a loop, `nn.remat` saved nothing (`benchmarks/NOTES.md`).
    """
    step = nn.remat(lambda block, x: (block(x, train=train), None), prevent_cse=False)
    loop = nn.scan(
        step,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=n,
    )
    return loop(block, x)[0]


def depth_problem(depth: int) -> str:
    """Say what is wrong with a depth, and the nearest legal ones; empty if nothing is."""
    if depth >= 8 and depth % 6 == 2:
        return ""
    below = max(8, depth - (depth - 2) % 6)
    nearest = "depth is 8" if depth < 8 else f"depths are {below} and {below + 6}"
    return f"depth={depth} is not 6n + 2 (8, 14, 20, ...): the nearest legal {nearest}"


def pad_channels(x: Float[Array, "b h w c"], channels: int) -> Float[Array, "b h w c2"]:
    """Add zero channels, half of them before and half after the existing ones."""
    extra = channels - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
