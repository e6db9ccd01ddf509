"""The names and shapes of a network's variables, and the network that has them."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from resnet_cifar.errors import UserError
from resnet_cifar.layers import STACKED
from resnet_cifar.models import ResNet

# The arrays of BatchNorm, each with its collection.
BATCH_NORM = (
    ("params", "scale"),
    ("params", "bias"),
    ("batch_stats", "mean"),
    ("batch_stats", "var"),
)


def model_of(arrays: Mapping[str, np.ndarray], path: Any) -> ResNet:
    """Read the network off the names and shapes of its arrays.

    Raises:
      UserError: they are not exactly those of a ResNet; the sentence begins with `path`.
    """
    found = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    blocks = sum(bool(re.fullmatch(r"params/stage1_block\d+/conv1/kernel", n)) for n in arrays)
    stacked = "params/stage1_blocks/conv1/kernel"
    try:
        fields: dict[str, Any] = {
            "depth": 6 * (blocks + found[stacked][1][0] if stacked in found else blocks) + 2,
            "num_classes": found["params/head/bias"][1][0],
            "width": found["params/stem_conv/kernel"][1][3],
            "shortcut": "B" if any("/shortcut_conv/" in name for name in arrays) else "A",
            "remat": stacked in found,
        }
        model = ResNet(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path} does not hold the arrays of a ResNet of this package") from error
    wanted = {name: ("float32", shape) for name, shape in array_shapes(**fields).items()}
    if differing := sorted(n for n in wanted | found if wanted.get(n) != found.get(n)):
        name = differing[0]
        raise UserError(
            f"{path} does not hold the arrays of a ResNet{model.depth}: {name} is "
            f"{found.get(name, 'missing')} and must be {wanted.get(name, 'absent')} "
            f"({len(differing)} arrays differ)"
        )
    return model


def num_parameters(model: ResNet) -> int:
    """Return the number of trained parameters of a network.

    Example:
      >>> num_parameters(ResNet(depth=20))
      269722
    """
    shapes = array_shapes(model.depth, model.num_classes, model.width, model.shortcut)
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("params/"))


def array_shapes(
    depth: int, num_classes: int, width: int, shortcut: str, remat: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's variables by path, without the seconds of tracing it."""
    shapes: dict[str, tuple[int, ...]] = {}
    blocks = (depth - 2) // 6

    def add(prefix: str, conv: str, bn: str, kernel: tuple[int, int, int, int]) -> None:
        stack = (blocks - 1,) if "blocks" in prefix else ()
        shapes[f"params/{prefix}{conv}/kernel"] = stack + kernel
        for kind, leaf in BATCH_NORM:
            shapes[f"{kind}/{prefix}{bn}/{leaf}"] = stack + kernel[-1:]

    add("", "stem_conv", "stem_bn", (3, 3, 3, width))
    before = width
    for stage in range(3):
        after = width * 2**stage
        for block in ["1", "s"] if remat and blocks > 1 else range(1, blocks + 1):
            name = f"stage{stage + 1}_block{block}/"
            add(name, "conv1", "bn1", (3, 3, before, after))
            add(name, "conv2", "bn2", (3, 3, after, after))
            if shortcut == "B" and before != after:
                add(name, "shortcut_conv", "shortcut_bn", (1, 1, before, after))
            before = after
    shapes["params/head/kernel"], shapes["params/head/bias"] = (before, num_classes), (num_classes,)
    return shapes


def stack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a network as those of the same one with `remat`.

    Works on any `{collection: {module: tree}}`: all blocks of a stage but the first become one, of
    NumPy arrays.

    Example:
      >>> scales = {f"stage1_block{i}": {"scale": np.full(16, float(i))} for i in (1, 2, 3)}
      >>> stacked = stack_blocks({"params": scales})["params"]
      >>> sorted(stacked), stacked["stage1_blocks"]["scale"].shape
      (['stage1_block1', 'stage1_blocks'], (2, 16))
    """

    def stacked(modules: Mapping[str, Any]) -> dict[str, Any]:
        names = [name for name in modules if re.fullmatch(r"stage\d_block(?!1$)\d+", name)]
        result = {name: module for name, module in modules.items() if name not in names}
        for stage in sorted({name.partition("_")[0] for name in names}):
            count = sum(name.startswith(f"{stage}_") for name in names)
            blocks = [modules[f"{stage}_block{i + 2}"] for i in range(count)]
            result[f"{stage}_blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
        return result

    return {kind: stacked(modules) for kind, modules in variables.items()}


def unstack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a network with `remat` as those of the same one without.

    Example:
      >>> stacked = {"params": {"stage1_blocks": {"scale": np.ones((2, 16))}}}
      >>> sorted(unstack_blocks(stacked)["params"])
      ['stage1_block2', 'stage1_block3']
    """

    def unstacked(modules: Mapping[str, Any]) -> dict[str, Any]:
        result = {name: module for name, module in modules.items() if not STACKED.fullmatch(name)}
        for name in sorted(modules.keys() - result.keys()):
            for i in range(len(jax.tree.leaves(modules[name])[0])):
                block = jax.tree.map(lambda leaf, i=i: leaf[i], modules[name])
                result[f"{name[:-1]}{i + 2}"] = block
        return result

    return {kind: unstacked(modules) for kind, modules in variables.items()}
