"""The checkpoints of a run: save in a thread, prune, restore the newest good one."""

import contextlib
import json
import logging
import shutil
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_cifar.checkpoint import format as fmt
from resnet_cifar.checkpoint.format import Damaged, Metadata
from resnet_cifar.errors import Diverged, UserError
from resnet_cifar.state import TrainState, array_fields
from resnet_cifar.workdir import write_atomically


class Restored(NamedTuple):
    """A state on the host, and the metadata of the checkpoint that held it."""

    state: TrainState
    metadata: Metadata


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the save in flight.

    It keeps the two newest and, where there is a validation accuracy, the best of those saved.
    """

    def __init__(self, workdir: Path, metadata: Metadata):
        """Open or create `workdir/checkpoints`, and remove what an interrupted save left there.

        Args:
          workdir: folder of the run.
          metadata: stored in every checkpoint, as JSON, as it is at that time.
        """
        self._folder = workdir.absolute() / "checkpoints"
        self._metadata = metadata
        self._resources = contextlib.ExitStack()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._resources.enter_context(fmt.accepted_path(self._folder)),
            # Orbax's background saves report a failure late and block for longer than our copy.
            # Its way of keeping the best one needs a metrics file that no digest covers.
            options=ocp.CheckpointManagerOptions(
                create=False,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                multiprocessing_options=alone(),
            ),
        )
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._read_back = False  # Whether a save of this start has been read back.

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()
            self._resources.close()
            for part in self._folder.glob("*.orbax-checkpoint-tmp*"):  # Left by a failed save.
                shutil.rmtree(part, ignore_errors=True)

    def save(
        self,
        state: TrainState,
        *,
        sums: dict[str, float] | None = None,
        validation_accuracy: float | None = None,
    ) -> None:
        """Copy a state to the host and let the thread write it.

        A step that has been saved before stays, and gets its accuracy if it had none.

        Args:
          state: to be saved.
          sums: metrics summed over the epoch in progress.
          validation_accuracy: chooses the best checkpoint.

        Raises:
          Diverged: the state is not finite.
          UserError: the save before failed.
        """
        self.wait()
        # A copy, since the next step reuses the buffers of this one.
        arrays = jax.tree.map(np.array, jax.device_get(array_fields(state)))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)):
            raise Diverged(
                f"the state after step {int(arrays['step']):,} is not finite and was not saved: "
                "the run has diverged. Earlier checkpoints are intact. Try a lower "
                "--config.learning_rate in another --workdir"
            )
        self._writing = self._writer.submit(self._write, arrays, sums or {}, validation_accuracy)

    def wait(self) -> None:
        """Return when the last save is on the disk; UserError if it failed."""
        if self._writing:
            self._writing.result()

    def check(self) -> None:
        """Raise the UserError of a failed save, without waiting for one in flight."""
        if self._writing and self._writing.done():
            self._writing.result()

    def _write(
        self, arrays: dict[str, Any], sums: dict[str, float], validation_accuracy: float | None
    ) -> None:
        step = int(arrays["step"])
        metadata = {**self._metadata, "sums": sums, "validation_accuracy": validation_accuracy}
        metadata |= {"format": fmt.FORMATS[-1], "sha256": fmt.digests(fmt.by_path(arrays))}
        metadata["seal"] = fmt.seal(metadata)
        try:
            if step not in fmt.saved_steps(self._folder):
                self._save_and_verify(step, arrays, metadata)
            elif validation_accuracy is not None and self._accuracy(step) is None:
                path = fmt.metadata_file(self._folder / str(step))
                write_atomically(path, json.dumps(metadata))
            self._prune()
        except Exception as error:  # Orbax raises many types, a bare Exception among them.
            logging.getLogger("asyncio").addFilter(is_new)
            raise UserError(
                f"the checkpoint of step {step:,} can't be written to {self._folder}: "
                f"{fmt.first_line(error)}. The run ends here. Earlier checkpoints are intact, and "
                "the same command resumes from the newest"
            ) from error

    def _save_and_verify(self, step: int, arrays: Any, metadata: dict[str, Any]) -> None:
        """Save, and read the first save of a start back: a file system can lose it silently."""
        items = {
            "state": ocp.args.StandardSave(arrays),
            "metadata": ocp.args.JsonSave(metadata),
        }
        self._manager.save(step, args=ocp.args.Composite(**items))
        if not self._read_back:
            try:
                fmt.read(self._folder / str(step))
            except Damaged as problem:
                raise OSError(f"it was saved, but {problem} when read back") from problem
            self._read_back = True

    def _prune(self) -> None:
        """Delete all but the two newest and the best."""
        steps = fmt.saved_steps(self._folder)
        scores = {step: score for step in steps if (score := self._accuracy(step)) is not None}
        best = max(scores, key=lambda step: scores[step], default=None)
        for step in set(steps) - {*steps[-2:], best}:
            self._manager.delete(step)

    def _accuracy(self, step: int) -> float | None:
        """Return the validation accuracy of a checkpoint, None if it is missing or damaged."""
        try:
            return fmt.read_metadata(self._folder / str(step)).get("validation_accuracy")
        except (Damaged, UserError):
            return None

    def restore(self, like: TrainState) -> Restored | None:
        """Return the newest good checkpoint, or None if there is none yet.

        Damaged ones that are newer are named and moved to `damaged_checkpoints` in the workdir.

        Args:
          like: a state, or what `jax.eval_shape` returns for one: the structure to restore.

        Raises:
          UserError: every checkpoint is damaged, or the newest good one is of an unknown format or
            does not fit `like`; nothing was moved.
        """
        damaged: dict[int, str] = {}
        for step in reversed(fmt.saved_steps(self._folder)):
            folder = self._folder / str(step)
            try:
                checkpoint = fmt.read(folder)
                break
            except Damaged as problem:
                damaged[step] = f"the checkpoint {folder} {problem}"
        else:
            if damaged:
                raise UserError(
                    f"every checkpoint is damaged: {'; '.join(damaged.values())}. Nothing was "
                    "deleted. To start over, choose another --workdir"
                )
            return None
        state = like.replace(**checkpoint.tree(array_fields(like)))
        for step, problem in damaged.items():
            print(f"warning: {problem}; moved to {self._set_aside(step)}", file=sys.stderr)
        if damaged:
            self._manager.reload()
        return Restored(state, checkpoint.metadata)

    def _set_aside(self, step: int) -> str:
        """Move a damaged checkpoint out of the way of the next save of its step."""
        folder = self._folder.with_name("damaged_checkpoints")
        folder.mkdir(exist_ok=True)
        aside = tempfile.mkdtemp(prefix=f"{step}-", dir=folder)
        shutil.move(self._folder / str(step), aside)
        return aside


def is_new(record: logging.LogRecord) -> bool:
    """Tell whether a failure is not among those of a failed save: each array has one of its own."""
    return not record.getMessage().startswith("Future exception was never retrieved")


def alone() -> ocp.options.MultiprocessingOptions:
    """Keep orbax from waiting for other processes: only the first one saves."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="resnet_cifar"
    )
