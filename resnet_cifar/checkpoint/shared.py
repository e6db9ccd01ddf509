"""The checkpoints of a run in several processes: process 0 reads and writes them for all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_cifar import processes
from resnet_cifar.checkpoint import format as fmt
from resnet_cifar.checkpoint.format import Metadata
from resnet_cifar.checkpoint.manager import Checkpoints, Restored
from resnet_cifar.errors import UserError
from resnet_cifar.state import TrainState, array_fields


class SharedCheckpoints:
    """`Checkpoints` that process 0 reads and writes; every process calls every method.

    The state is replicated, so one process can save all of it. Each save compares the bits.
    """

    def __init__(self, workdir: Path, metadata: Metadata):
        """Open the folder in process 0; arguments as of `Checkpoints`."""
        self._own = Checkpoints(workdir, metadata) if processes.is_primary() else None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._own:
            self._own.__exit__(*exception)

    def restore(self, like: TrainState) -> Restored | None:
        """Return the newest good checkpoint; the other processes get its metadata, and `like`."""
        restored = None

        def read() -> Any:
            nonlocal restored
            restored = self._own and self._own.restore(like)
            return restored and restored.metadata

        metadata = processes.from_primary(read)
        return restored or (Restored(like, metadata) if metadata else None)

    def save(
        self,
        state: TrainState,
        *,
        sums: dict[str, float] | None = None,
        validation_accuracy: float | None = None,
    ) -> None:
        """Save as `Checkpoints.save` does; UserError if the processes have different states."""
        self.wait()  # In process 0 alone; the others wait for its digest.
        digests = fmt.digests(fmt.by_path(jax.device_get(array_fields(state))))
        mine = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        if mine != processes.from_primary(lambda: mine):
            raise UserError(
                f"after step {int(np.asarray(state.step)):,} the state of process "
                f"{jax.process_index()} is not that of process 0: use machines of the same kind"
            )
        if self._own:
            self._own.save(state, sums=sums, validation_accuracy=validation_accuracy)

    def wait(self) -> None:
        """Wait for process 0's save in process 0."""
        if self._own:
            self._own.wait()

    def check(self) -> None:
        """Raise the UserError of process 0's failed save in process 0."""
        if self._own:
            self._own.check()
