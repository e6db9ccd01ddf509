"""The names and shapes of a network's variables, and the network that has them."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_cifar.errors import UserError
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
    try:
        fields: dict[str, Any] = {
            "depth": 6 * blocks + 2,
            "num_classes": found["params/head/bias"][1][0],
            "width": found["params/stem_conv/kernel"][1][3],
            "shortcut": "B" if any("/shortcut_conv/" in name for name in arrays) else "A",
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
    depth: int, num_classes: int, width: int, shortcut: str
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's variables by path, without the seconds of tracing it."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(prefix: str, conv: str, bn: str, kernel: tuple[int, int, int, int]) -> None:
        shapes[f"params/{prefix}{conv}/kernel"] = kernel
        for kind, leaf in BATCH_NORM:
            shapes[f"{kind}/{prefix}{bn}/{leaf}"] = kernel[-1:]

    add("", "stem_conv", "stem_bn", (3, 3, 3, width))
    before = width
    for stage in range(3):
        after = width * 2**stage
        for block in range((depth - 2) // 6):
            name = f"stage{stage + 1}_block{block + 1}/"
            add(name, "conv1", "bn1", (3, 3, before, after))
            add(name, "conv2", "bn2", (3, 3, after, after))
            if shortcut == "B" and before != after:
                add(name, "shortcut_conv", "shortcut_bn", (1, 1, before, after))
            before = after
    shapes["params/head/kernel"], shapes["params/head/bias"] = (before, num_classes), (num_classes,)
    return shapes
