"""What several test files share."""

import dataclasses
import signal
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from resnet_cifar.grid import Job
from resnet_cifar.models import ResNet
from resnet_cifar.stop import Stop
from resnet_cifar.variables import array_shapes
from resnet_cifar.weights import Preprocessing, Pretrained, assemble, save_weights


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


def make_pretrained(names, *, depth=8, width=16, shortcut="A", remat=False, config=None):
    """Return a network of random weights, positive where they must be."""
    rng, model = np.random.default_rng(7), ResNet(depth, len(names), width, shortcut, remat=remat)
    shapes = array_shapes(depth, len(names), width, shortcut, remat)
    arrays = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {name: 0.5 + abs(a) for name, a in arrays.items() if name.endswith(("scale", "var"))}
    preprocessing = Preprocessing((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    variables = unflatten_dict(arrays, sep="/")
    return Pretrained(model, variables, preprocessing, tuple(names), config or {}, "")


@dataclasses.dataclass
class FakeNetwork:
    """A network that reads its prediction from an image's first pixel, of which it is sure.

    `shift` is added to what it reads, so that it errs; `images_saying` makes such images.
    """

    source: str = "fake"
    class_names: tuple[str, ...] = ("ant", "bee", "cat")
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    shift: int = 0
    confidence: float = 0.8

    def probabilities(self, images):
        predicted = (images[:, 0, 0, 0].astype(int) + self.shift) % len(self.class_names)
        rest = (1 - self.confidence) / (len(self.class_names) - 1)
        sure = np.eye(len(self.class_names))[predicted] * (self.confidence - rest)
        return (sure + rest).astype(np.float32)

    def logits(self, images):
        return np.log(self.probabilities(images))


def images_saying(classes, mirrored=None):
    """Return images that a `FakeNetwork` takes for the classes; mirrored, for the others."""
    images = np.zeros((len(classes), 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = classes
    images[:, 0, -1, 0] = classes if mirrored is None else mirrored
    return images


def save_random_weights(path, class_names):
    """Save a ResNet8 of width 4 with random weights, and return it."""
    rng = np.random.default_rng(0)
    shapes = array_shapes(8, len(class_names), 4, "A").items()
    arrays = {name: rng.uniform(0, 0.6, shape).astype(np.float32) for name, shape in shapes}
    pretrained = assemble(path, arrays, {"mean": [0.5] * 3, "std": [0.25] * 3}, class_names, {})
    save_weights(path, pretrained)
    return pretrained


def make_seeds(config, folder, seeds=(0, 1)):
    """Return the runs of a sweep over seeds."""
    return [
        Job("card", dataclasses.replace(config, seed=seed), folder / f"seed{seed}")
        for seed in seeds
    ]


# Relative to the largest entry; bfloat16 has 8 bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def normal(seed, *shape, dtype="float32"):
    """Drawn by NumPy, as JAX would compile a program for every shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def assert_close(got, expected, dtype="float32"):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        one, other = (np.asarray(array, np.float32) for array in (a, b))
        np.testing.assert_allclose(one, other, atol=TOLERANCE[dtype] * max(1, abs(other).max()))


class Normalized(nn.Module):
    """A small net with BatchNorm."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        pixels = images.reshape(len(images), -1)[:, :6]
        return nn.Dense(7)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(pixels))


class Linear(nn.Module):
    """A net without BatchNorm, of another project."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(7, name="head")(images.reshape(len(images), -1))


def make_batch(n=8, classes=7):
    labels = np.random.default_rng(5).integers(0, classes, n, np.int32)
    return {"image": normal(5, n, 32, 32, 3), "label": jnp.asarray(labels)}
