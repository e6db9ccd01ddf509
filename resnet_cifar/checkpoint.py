"""Save and restore a TrainState with orbax, each checkpoint with what explains it and a digest of all it holds."""

import hashlib
import json
import shutil
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_cifar.errors import Diverged, UserError
from resnet_cifar.steps import TrainState
from resnet_cifar.workdir import write_atomically

FORMATS = (
    1,
    2,
)  # 1: always at the end of an epoch, so without sums, and no digest of the metadata itself.


class Restored(NamedTuple):
    """What a checkpoint held."""

    state: TrainState
    sums: dict[str, float]  # Of the metrics of an epoch that was under way.
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, written by a thread; a context manager that waits for the last one.

    Kept are the two newest and, where there is a validation accuracy, the best of those saved.
    """

    def __init__(self, workdir: Path, metadata: dict[str, Any]):
        """Open or create `workdir/checkpoints`; what a save that was cut off has left there is removed.

        Args:
          workdir: folder of the run.
          metadata: goes into every checkpoint, as JSON.
        """
        self._folder = workdir.absolute() / "checkpoints"
        self._metadata = metadata
        self._manager = ocp.CheckpointManager(
            self._folder,
            # Orbax's own background saves report a failure late, and block for longer than our copy takes. Its own way
            # of keeping the best needs a file of metrics that no digest covers.
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True, enable_async_checkpointing=False
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
            for part in self._folder.glob("*.orbax-checkpoint-tmp*"):  # Of a save that failed.
                shutil.rmtree(part, ignore_errors=True)

    def save(
        self,
        state: TrainState,
        *,
        sums: dict[str, float] | None = None,
        validation_accuracy: float | None = None,
    ) -> None:
        """Copy a state to the host and let the thread write it.

        A step that is there already stays, and gets its accuracy if it had none.

        Args:
          state: to be saved.
          sums: of the metrics of an epoch that is under way.
          validation_accuracy: to choose the best by.

        Raises:
          UserError: the state is not finite, and would not be worth keeping; or the save before failed.
        """
        self.wait()
        # A copy, since the next step reuses the buffers of this one.
        arrays = jax.tree.map(np.array, jax.device_get(fields(state)))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)):
            raise Diverged(
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

    def _write(
        self, arrays: dict[str, Any], sums: dict[str, float], validation_accuracy: float | None
    ) -> None:
        step = int(arrays["step"])
        metadata = {**self._metadata, "sums": sums, "validation_accuracy": validation_accuracy}
        metadata |= {"format": FORMATS[-1], "sha256": digests(arrays)}
        metadata["seal"] = seal(metadata)
        try:
            if step not in self._manager.all_steps():
                items = {
                    "state": ocp.args.StandardSave(arrays),
                    "metadata": ocp.args.JsonSave(metadata),
                }
                self._manager.save(step, args=ocp.args.Composite(**items))
            elif validation_accuracy is not None and self._accuracy(step) is None:
                write_atomically(self._metadata_file(step), json.dumps(metadata))
            self._prune()
        except (
            Exception
        ) as error:  # Orbax raises what the part that failed raises, a bare Exception too.
            raise UserError(
                f"the checkpoint of step {step:,} can't be written to {self._folder}: {first_line(error)}. The run "
                "ends here; checkpoints from before are as they were, and the same command goes on from the newest"
            ) from error

    def _prune(self) -> None:
        """Delete all but the two newest and the best."""
        steps = sorted(self._manager.all_steps())
        scores = {step: score for step in steps if (score := self._accuracy(step)) is not None}
        for step in set(steps) - {
            *steps[-2:],
            max(scores, key=lambda step: scores[step], default=None),
        }:
            self._manager.delete(step)

    def _accuracy(self, step: int) -> float | None:
        """Return the validation accuracy in a checkpoint's metadata; None if there is none, or it can't be trusted."""
        try:
            metadata = json.loads(self._metadata_file(step).read_text())
            return metadata["validation_accuracy"] if metadata["seal"] == seal(metadata) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _metadata_file(self, step: int) -> Path:
        return self._folder / str(step) / "metadata" / "metadata"

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
            aside = tempfile.mkdtemp(
                prefix=f"{step}-", dir=self._folder.with_name("damaged_checkpoints")
            )
            shutil.move(self._folder / str(step), aside)
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
            arrays = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
            )["state"]
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
