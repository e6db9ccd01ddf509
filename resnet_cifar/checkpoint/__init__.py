"""Checkpoints: the format and its read-only reader, and the manager of a run's checkpoints."""

from resnet_cifar.checkpoint.format import Checkpoint, read
from resnet_cifar.checkpoint.manager import Checkpoints, Restored
from resnet_cifar.checkpoint.shared import SharedCheckpoints

__all__ = ["Checkpoint", "Checkpoints", "Restored", "SharedCheckpoints", "read"]
