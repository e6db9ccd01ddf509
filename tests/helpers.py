"""What several test files share."""

import signal

import jax
import numpy as np

from resnet_cifar.stop import Stop


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
