"""What several test files share."""

import signal

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from resnet_cifar.models import ResNet
from resnet_cifar.stop import Stop
from resnet_cifar.weights import Preprocessing, Pretrained, array_shapes


class StopAfter(Stop):
    """Asks to stop once it has been polled so many times."""

    def __init__(self, polls):
        super().__init__()
        self.polls = polls

    @property
    def signal(self):
        self.polls -= 1
        return signal.SIGTERM if self.polls < 0 else None

    @signal.setter
    def signal(self, value):
        pass


def untimed(rows):
    """Return rows without the fields that hold times."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def assert_same(tree, other):
    """Compare two trees bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def make_pretrained(names, *, width=16, shortcut="A", config=None):
    """Return a ResNet8 of random weights, positive where they must be."""
    rng, model = np.random.default_rng(7), ResNet(8, len(names), width, shortcut)
    shapes = array_shapes(8, len(names), width, shortcut)
    arrays = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {name: 0.5 + abs(a) for name, a in arrays.items() if name.endswith(("scale", "var"))}
    preprocessing = Preprocessing((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    variables = unflatten_dict(arrays, sep="/")
    return Pretrained(model, variables, preprocessing, tuple(names), config or {}, "")
