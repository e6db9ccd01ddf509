"""The names and the memory layout of PyTorch's weights, to ours and back, for three repositories.

Ours are paths, "params/stage1_block1/conv1/kernel", theirs keys, "layer1.0.conv1.weight".
Convolutions are [h, w, in, out] here and [out, in, h, w] there. The head is [in, out] here and
[out, in] there.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from resnet_cifar.errors import UserError
from resnet_cifar.variables import array_shapes


class Layout(NamedTuple):
    """How one repository names the modules of a network."""

    stem_conv: str
    stem_bn: str
    block: str  # A format of the stage and the block, which count from 1, and of the block from 0.
    conv1: str
    bn1: str
    conv2: str
    bn2: str
    shortcut_conv: str
    shortcut_bn: str
    head: str
    shortcuts: str  # Kinds that it knows.


BASIC = ("conv1", "bn1", "layer{stage}.{block0}.", "conv1", "bn1", "conv2", "bn2")
LAYOUTS = {
    "akamaster": Layout(*BASIC, "shortcut.0", "shortcut.1", "linear", "AB"),
    "chenyaofo": Layout(*BASIC, "downsample.0", "downsample.1", "fc", "B"),
    "pytorchcv": Layout(
        "features.init_block.conv",
        "features.init_block.bn",
        "features.stage{stage}.unit{block}.",
        "body.conv1.conv",
        "body.conv1.bn",
        "body.conv2.conv",
        "body.conv2.bn",
        "identity_conv.conv",
        "identity_conv.bn",
        "output",
        "B",
    ),
}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
WRAPPERS = r"^((module|_orig_mod)\.)+"  # DataParallel and torch.compile.
COUNTER = ".num_batches_tracked"  # A counter of BatchNorm's, unused here.


def torch_name(path: str, layout: str) -> str:
    """Return PyTorch's key for one of our arrays.

    Example:
      >>> torch_name("params/stage2_block1/shortcut_bn/scale", "chenyaofo")
      'layer2.0.downsample.1.weight'
    """
    _, *modules, leaf = path.split("/")
    names = LAYOUTS[layout]
    prefix = ""
    if len(modules) == 2:
        stage, block = (int(part.strip("stageblock")) for part in modules[0].split("_"))
        prefix = names.block.format(stage=stage, block=block, block0=block - 1)
    return f"{prefix}{getattr(names, modules[-1])}.{LEAVES[leaf]}"


def to_torch(arrays: Mapping[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """Return PyTorch's tensors for our arrays by path, under the keys of a layout."""
    return {
        torch_name(path, layout): np.ascontiguousarray(transpose(array, (3, 2, 0, 1)))
        for path, array in arrays.items()
    }


def from_torch(tensors: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """Return the layout of some tensors, and our float32 arrays by path.

    Depth, width, shortcut and number of classes are read off the tensors.

    Raises:
      UserError: keys are missing or left over, and are listed, or a shape is wrong.
    """
    tensors = unwrap(tensors)
    layout = max(LAYOUTS, key=lambda name: len(expected(tensors, name).keys() & tensors.keys()))
    wanted = expected(tensors, layout)
    missing = [name for name in wanted if name not in tensors]
    extra = [n for n in tensors if n not in wanted and not is_counter(n, wanted)]
    if len(missing) == len(wanted):
        raise UserError(
            f"its keys are of none of the layouts {', '.join(LAYOUTS)}: {listed(extra)}"
        )
    if missing or extra:
        raise UserError(
            f"its keys are not those of a ResNet in the layout of {layout}: missing are "
            f"{listed(missing)}; left over are {listed(extra)}"
        )
    arrays = {}
    for name, (path, shape) in wanted.items():
        array = transpose(tensors[name], (2, 3, 1, 0))
        if array.shape != shape:
            raise UserError(
                f"{name} has the shape {list(tensors[name].shape)}, which does not fit the network"
            )
        arrays[path] = np.ascontiguousarray(array, np.float32)
    return layout, arrays


def expected(
    tensors: Mapping[str, np.ndarray], layout: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the path and our shape of each key that a network like these tensors has."""
    names = LAYOUTS[layout]

    def size(key: str, default: int) -> int:
        return (tensors[key].shape or (default,))[0] if key in tensors else default

    def block(stage: int, number: int) -> str:
        return names.block.format(stage=stage, block=number, block0=number - 1)

    blocks = 1
    while f"{block(1, blocks + 1)}{names.conv1}.weight" in tensors:
        blocks += 1
    shortcut = names.shortcuts[0]
    if any(f"{block(stage, 1)}{names.shortcut_conv}.weight" in tensors for stage in (2, 3)):
        shortcut = "B"
    shapes = array_shapes(
        depth=6 * blocks + 2,
        num_classes=size(f"{names.head}.bias", 10),
        width=size(f"{names.stem_conv}.weight", 16),
        shortcut=shortcut,
    )
    return {torch_name(path, layout): (path, shape) for path, shape in shapes.items()}


def unwrap(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove what wrappers of a network put before its keys."""
    bare = {re.sub(WRAPPERS, "", name): tensor for name, tensor in tensors.items()}
    return bare if len(bare) == len(tensors) else dict(tensors)


def transpose(array: np.ndarray, convolution: tuple[int, ...]) -> np.ndarray:
    """Turn a convolution by the given axes and a matrix around, and leave a vector."""
    return array.transpose(convolution) if array.ndim == 4 else array.T


def is_counter(name: str, wanted: Mapping[str, object]) -> bool:
    return name.endswith(COUNTER) and f"{name.removesuffix(COUNTER)}.running_mean" in wanted


def listed(names: list[str]) -> str:
    """List names, the first 30 of many."""
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return (", ".join(repr(name[:100]) for name in names[:30]) or "none") + more
