"""Save and restore a TrainState with orbax, each checkpoint with what explains it and a digest of all it holds."""

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet_cifar.errors import UserError
from resnet_cifar.steps import TrainState

FORMATS = (1, 2)  # 1: always at the end of an epoch, so without sums, and no digest of the metadata itself.


class Restored(NamedTuple):
    """What a checkpoint held."""

    state: TrainState
    sums: dict[str, float]  # Of the metrics of an epoch that was under way.
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, written by a thread; a context manager that waits for the last one.

    Kept are the two newest and, where there is a validation accuracy, the best of those saved.
    """

    def __init__(self, workdir: Path, metadata: dict[str, Any], *, validated: bool):
        """Open or create `workdir/checkpoints`; what a save that was cut off has left there is removed.

        Args:
          workdir: folder of the run.
          metadata: goes into every checkpoint, as JSON.
          validated: whether there will be a validation accuracy to choose the best by.
        """
        self._folder = workdir.absolute() / "checkpoints"
        self._metadata, self._validated = metadata, validated
        best = preservation_policy.BestN(
            get_metric_fn=_validation_accuracy, n=1, keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(2), best]),
                best_fn=_validation_accuracy if validated else None,
                cleanup_tmp_directories=True,
                # Orbax's own background saves report a failure late, and block for longer than our copy takes.
                enable_async_checkpointing=False,
            ),
        )
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()

    def save(
        self, state: TrainState, *, sums: dict[str, float] | None = None, validation_accuracy: float | None = None
    ) -> None:
        """Copy a state to the host and let the thread write it.

        A step that is there already is written again only if it has an accuracy now and had none.

        Args:
          state: to be saved.
          sums: of the metrics of an epoch that is under way.
          validation_accuracy: to choose the best by.

        Raises:
          UserError: the state is not finite, and would not be worth keeping; or the save before failed.
        """
        self.wait()
        # A copy, since the next step reuses the buffers of this one.
        arrays = jax.tree.map(np.array, fields(state))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)):
            raise UserError(
                f"the state after step {int(arrays['step']):,} is not finite and was not saved: the run has diverged. "
                "Checkpoints from before are as they were; try a lower --config.learning_rate in another --workdir"
            )
        self._writing = self._writer.submit(self._write, arrays, sums or {}, validation_accuracy)

    def wait(self) -> None:
        """Return when what was saved is on the disk; UserError if it could not be written."""
        if self._writing:
            self._writing.result()

    def check(self) -> None:
        """Raise what went wrong with a save, without waiting for one that is under way."""
        if self._writing and self._writing.done():
            self._writing.result()

    def _write(self, arrays: dict[str, Any], sums: dict[str, float], validation_accuracy: float | None) -> None:
        step = int(arrays["step"])
        metadata = {**self._metadata, "sums": sums, "format": FORMATS[-1], "sha256": digests(arrays)}
        metadata["seal"] = seal(metadata)
        try:
            if step in self._manager.all_steps():
                if validation_accuracy is None or self._accuracy(step) is not None:
                    return
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), metadata=ocp.args.JsonSave(metadata)),
                metrics={"validation_accuracy": validation_accuracy} if self._validated else None,
            )
        except Exception as error:  # Orbax raises what the part that failed raises, a bare Exception too.
            for part in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(part, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {step:,} can't be written to {self._folder}: {first_line(error)}. The run "
                "ends here; checkpoints from before are as they were, and the same command goes on from the newest"
            ) from error

    def _accuracy(self, step: int) -> float | None:
        metrics = self._manager.metrics(step) or {}
        return metrics.get("validation_accuracy")

    def restore(self, like: TrainState) -> Restored | None:
        """Return the newest checkpoint that is whole, or None where there is none yet.

        Damaged ones that are newer are named and moved to `damaged_checkpoints` in the workdir.

        Args:
          like: a state, or what `jax.eval_shape` says of one; the restored one has its structure, on the host.

        Raises:
          UserError: no checkpoint is whole, or one is of a format that is not known; nothing was moved.
        """
        blank = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), fields(like))
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                metadata, arrays = self._read(step, blank)
                break
            except _Damaged as problem:
                damaged[step] = f"the checkpoint {self._folder / str(step)} {problem}"
        else:
            if damaged:
                raise UserError(
                    f"no checkpoint is whole: {'; '.join(damaged.values())}. Nothing was deleted. To train anew, "
                    "choose another --workdir"
                )
            return None
        for step, problem in damaged.items():
            self._folder.with_name("damaged_checkpoints").mkdir(exist_ok=True)
            aside = tempfile.mkdtemp(prefix=f"{step}-", dir=self._folder.with_name("damaged_checkpoints"))
            os.replace(self._folder / str(step), aside)
            print(f"warning: {problem}; it is now {aside}", file=sys.stderr)
        self._manager.reload()
        return Restored(like.replace(**arrays), metadata.get("sums", {}), metadata)

    def _read(self, step: int, like: Any) -> tuple[dict[str, Any], Any]:
        """Return the metadata and the arrays of a checkpoint; _Damaged unless they are those that were saved."""
        try:
            only = ocp.args.Composite(metadata=ocp.args.JsonRestore())
            metadata = self._manager.restore(step, args=only)["metadata"]
            version, whole = metadata["format"], metadata.get("seal") == seal(metadata)
        except Exception as error:
            raise _Damaged(f"can't be read ({first_line(error)})") from error
        if version != 1 and not whole:
            raise _Damaged("is damaged: its metadata is not what was saved")
        if version not in FORMATS:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} has the format {version}; this version of resnet_cifar "
                f"knows {' and '.join(map(str, FORMATS))}: install the newer one that wrote it"
            )
        try:
            arrays = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]
        except Exception as error:
            raise _Damaged(f"can't be read ({first_line(error)})") from error
        if metadata["sha256"] != digests(arrays):
            raise _Damaged("is damaged: its arrays are not those that were saved")
        return metadata, arrays


class _Damaged(Exception):
    """What is wrong with a checkpoint, to be said after its name."""


def digests(arrays: Any) -> dict[str, str]:
    """Return the sha256 of each array's type, shape and bytes by its path in the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): hashlib.sha256(
            f"{leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()
        ).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


def seal(metadata: dict[str, Any]) -> str:
    """Return the sha256 of all metadata but the seal itself, the digests of the arrays included."""
    content = {name: value for name, value in metadata.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fields(state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds of a state."""
    return {name: getattr(state, name) for name in ("step", "params", "batch_stats", "opt_state")}


def first_line(error: Exception) -> str:
    """Return what an error says, without the pages that tensorstore adds."""
    return str(error).partition("\n")[0].partition(" [tensorstore_spec")[0] or repr(error)


def _validation_accuracy(metrics: dict[str, float | None]) -> float:
    """Rank a checkpoint, below all others if it has not been scored; nor must a NaN push the best one out."""
    value = metrics["validation_accuracy"]
    return value if value is not None and math.isfinite(value) else -math.inf
