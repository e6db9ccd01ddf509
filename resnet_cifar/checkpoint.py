"""Save and restore a TrainState with orbax, each checkpoint with what explains it and a digest of every array."""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet_cifar.errors import UserError
from resnet_cifar.steps import TrainState

FORMAT = 1


class Checkpoints:
    """The checkpoints of one run, written in the background; a context manager that waits for the last one.

    Kept are the two newest and, where there is a validation accuracy, the best of those saved.
    """

    def __init__(self, workdir: Path, metadata: dict[str, Any], *, validated: bool):
        """Open or create `workdir/checkpoints`.

        Args:
          workdir: folder of the run.
          metadata: goes into every checkpoint, as JSON.
          validated: whether there will be a validation accuracy to choose the best by.
        """
        best = preservation_policy.BestN(
            get_metric_fn=_validation_accuracy, n=1, keep_checkpoints_without_metrics=False
        )
        self._metadata = metadata
        self._manager = ocp.CheckpointManager(
            workdir.absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(2), best]),
                best_fn=_validation_accuracy if validated else None,
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def save(self, state: TrainState, validation_accuracy: float | None = None) -> None:
        """Copy a state to the host and write it in the background. Saving a step that is there does nothing."""
        # A copy, since the next step reuses the buffers of this one.
        arrays = jax.tree.map(np.array, fields(state))
        step = int(arrays["step"])
        if step in self._manager.all_steps():
            return
        metadata = {**self._metadata, "format": FORMAT, "sha256": digests(arrays)}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), metadata=ocp.args.JsonSave(metadata)),
            metrics=None if validation_accuracy is None else {"validation_accuracy": validation_accuracy},
        )

    def restore(self, state: TrainState) -> tuple[TrainState, bool]:
        """Return (the newest checkpoint, True), or (the state given, False) where there is none yet.

        Args:
          state: at step 0; the restored one is like it in shapes, types and shardings.

        Raises:
          UserError: the checkpoint is not what was saved.
        """
        step = self._manager.latest_step()
        if step is None:
            return state, False
        folder = f"the checkpoint {self._manager.directory / str(step)}"
        like = jax.tree.map(np.asarray, fields(state))
        try:
            saved = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like), metadata=ocp.args.JsonRestore())
            )
            metadata = saved["metadata"]
            damaged = metadata["sha256"] != digests(saved["state"])
        except Exception as error:  # Orbax raises what the part that failed raises, a bare Exception too.
            raise UserError(f"{folder} can't be read: {str(error).partition(chr(10))[0] or repr(error)}") from error
        if metadata["format"] != FORMAT:
            raise UserError(
                f"{folder} has the format {metadata['format']}; this version of resnet_cifar knows {FORMAT}"
            )
        if damaged:
            raise UserError(
                f"{folder} is damaged: its arrays are not those that were saved. Delete that folder, and the run goes "
                "on from the checkpoint before"
            )
        placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), saved["state"], fields(state))
        return state.replace(**placed), True


def digests(arrays: Any) -> dict[str, str]:
    """Return the sha256 of each array's type, shape and bytes by its path in the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): hashlib.sha256(
            f"{leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()
        ).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


def fields(state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds of a state."""
    return {name: getattr(state, name) for name in ("step", "params", "batch_stats", "opt_state")}


def _validation_accuracy(metrics: dict[str, float]) -> float:
    """Rank a checkpoint; a NaN must not push the best one out."""
    value = metrics["validation_accuracy"]
    return value if math.isfinite(value) else -math.inf
