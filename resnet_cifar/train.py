"""The loop: train, evaluate, record, save, and resume where an earlier start stopped."""

import contextlib
from pathlib import Path
from typing import Any

import jax

from resnet_cifar import describe, processes
from resnet_cifar.checkpoint import Checkpoints, Restored, SharedCheckpoints
from resnet_cifar.checkpoint.format import Metadata, saved_steps
from resnet_cifar.config import Config, validate
from resnet_cifar.errors import Diverged, UserError
from resnet_cifar.finetune import Start, initial_state, read_start, start_lines
from resnet_cifar.log import Log, Silent, read_rows
from resnet_cifar.metrics import Done, RunMetrics, resumed_rows
from resnet_cifar.plan import blank_splits
from resnet_cifar.programs import Programs
from resnet_cifar.provenance import check_same_images, checkpoint_metadata, common, differences
from resnet_cifar.state import TrainState
from resnet_cifar.stop import Stop, Stopped
from resnet_cifar.trainer import Trainer
from resnet_cifar.workdir import check_workdir, claimed, write_atomically, write_config


def train_and_evaluate(
    config: Config,
    workdir: str | Path,
    *,
    stop: Stop | None = None,
    programs: Programs | None = None,
) -> TrainState:
    """Train by a config, or resume an interrupted run, and score the test set.

    Args:
      config: the run.
      workdir: folder for its files; made if it does not exist.
      stop: polled between dispatches; a run that is asked to stop saves first.
      programs: those of an earlier run, whose config may differ in the seed, the learning rate,
        the weight decay and a few more fields (`resnet_cifar.programs.FREE`).

    Returns:
      The state after the last step.

    Raises:
      UserError: the config, the data or the workdir do not allow the run, or it diverged. No file
        of another run and no good checkpoint was touched.
      Stopped: the run was asked to stop, and saved.
    """
    validate(config)
    processes.check_alike(common(config))
    folder = Path(processes.from_primary(lambda: str(check_workdir(workdir, config))))
    return run(Trainer(config, programs=programs), folder, stop or Stop())


def dry_run(config: Config) -> None:
    """Print what a run would be and what a step costs; needs no data and trains nothing."""
    validate(config)
    trainer = Trainer(config, load=blank_splits)
    header = [*describe.header(trainer), *start_lines(trainer, read_start(trainer))]
    print("\n".join(header), flush=True)
    print("\n".join(describe.costs(trainer)))


def run(trainer: Trainer, folder: Path, stop: Stop) -> TrainState:
    """Run a trainer in a folder from `check_workdir`; raises as `train_and_evaluate`."""
    with contextlib.ExitStack() as held:
        held.enter_context(processes.primary_prints())
        # A run that resumes has everything in its checkpoint.
        resumes = processes.from_primary(lambda: bool(saved_steps(folder / "checkpoints")))
        start = None if resumes else read_start(trainer)
        header = [*describe.header(trainer), *start_lines(trainer, start), f"workdir    {folder}"]
        print("\n".join(header), flush=True)
        processes.check_alike(trainer.data_digests())
        claim = claimed(folder, trainer.config)
        saved_config = processes.from_primary(lambda: held.enter_context(claim))
        try:
            return _run(trainer, folder, trainer.share(stop), saved_config, start)
        except Diverged as error:
            if processes.is_primary():
                write_atomically(folder / "diverged.txt", f"{error}\n")
            raise


def _run(
    trainer: Trainer, folder: Path, stop: Stop, saved_config: dict[str, Any], start: Start | None
) -> TrainState:
    """Resume or start, loop, and write the summary."""
    num_steps, programs = trainer.plan.num_steps, trainer.programs
    metadata = checkpoint_metadata(trainer.config, str(programs.dtype), programs.kernels.name)
    manager = SharedCheckpoints if processes.several() else Checkpoints
    with manager(folder, metadata) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(trainer.init_state))
        state, step = _first_state(trainer, restored, metadata, start)
        if step == num_steps and processes.from_primary((folder / "summary.json").exists):
            print(f"already finished: see {folder / 'summary.json'}")
            return state
        metrics = _metrics_so_far(trainer, folder, step, restored, saved_config)
        print(describe.compiling(trainer), flush=True)
        trainer.compile(state, step)
        processes.wait_for_all()
        if processes.is_primary():
            _take_over(folder, trainer.config)
        sizes = {"num_steps": num_steps, "batch_size": trainer.config.batch_size}
        log = Log if processes.is_primary() else Silent
        with log(folder, metrics.rows, step=step, **sizes) as log:
            if restored:
                epoch = f"epoch {trainer.plan.epoch(step):g}"
                log.say(f"resuming from the checkpoint of step {step:,} ({epoch})")
                for change in differences(restored.metadata, metadata):
                    log.say(
                        f"environment not as it was, results may not be bit-identical: {change}"
                    )
            stop.hold()  # From now on there is something to save.
            state, step = _loop(
                trainer, state, step, metrics=metrics, log=log, checkpoints=checkpoints, stop=stop
            )
            checkpoints.wait()
            if not metrics.row(num_steps, "test"):
                raise Stopped(
                    f"saved at step {step:,} of {num_steps:,}: the same command resumes there"
                )
            _finish(trainer, folder, metrics, log, metadata)
    return state


def _first_state(
    trainer: Trainer, restored: Restored | None, metadata: Metadata, start: Start | None
) -> tuple[TrainState, int]:
    """Return the state of a checkpoint, or one to start from, on the devices, and its step.

    Records in `metadata` what weights the run started from.
    """
    if restored:
        check_same_images(restored.metadata, metadata)
    record = restored.metadata.get("init_from") if restored else start and start.record
    if record:
        metadata["init_from"] = record
    if restored:
        state = restored.state
    elif processes.is_primary():
        state = initial_state(trainer, start)
    else:
        state = jax.eval_shape(trainer.init_state)
    state = trainer.programs.devices.from_primary(state)
    return state, int(state.step)


def _metrics_so_far(
    trainer: Trainer,
    folder: Path,
    step: int,
    restored: Restored | None,
    saved_config: dict[str, Any],
) -> RunMetrics:
    """Return the metrics of the steps up to a checkpoint; UserError if their rows are missing."""
    plan = trainer.plan
    rows = processes.from_primary(lambda: read_rows(folder))
    metrics = RunMetrics(
        plan,
        trainer.learning_rate,
        rows=resumed_rows(rows, plan, step, trainer.config, saved_config),
        sums=restored.metadata.get("sums") if restored else None,
        step=step,
    )
    if step >= plan.steps_per_epoch and not metrics.row(plan.epoch_start(step), "train"):
        raise UserError(
            f"{folder / 'metrics.jsonl'} lacks rows from before the checkpoint of step {step:,}: "
            "restore the file, or choose another --workdir"
        )
    return metrics


def _take_over(folder: Path, config: Config) -> None:
    """Write the config; remove the end of an earlier start, with fewer epochs or diverged."""
    write_config(folder, config)
    for name in ("summary.json", "diverged.txt"):
        (folder / name).unlink(missing_ok=True)


def _finish(
    trainer: Trainer, folder: Path, metrics: RunMetrics, log: Log | Silent, metadata: Metadata
) -> None:
    """Write the summary and the curves."""
    summary = describe.summary(trainer, metrics.rows, metadata)
    result = f"{describe.accuracy_text(summary)} of the test images"
    title = f"{describe.title(trainer)}: {result}"
    log.finish(summary, metrics.rows, title, describe.learning_rates(trainer))
    seconds = f"{summary['train_seconds']:,.0f} s of training"
    log.say(f"done: {result} after {seconds}; see {folder / 'curves.png'}")


def _loop(
    trainer: Trainer,
    state: TrainState,
    step: int,
    *,
    metrics: RunMetrics,
    log: Log | Silent,
    checkpoints: Checkpoints | SharedCheckpoints,
    stop: Stop,
) -> tuple[TrainState, int]:
    """Train to the end, or until asked to stop.

    Each turn begins with what is due after `step`, since an earlier start may have been stopped
    before it was done. Work is enqueued, and what has finished meanwhile is settled.
    """
    config, plan = trainer.config, trainer.plan

    def settle(finished: list[Done]) -> None:
        for done in finished:
            row = metrics.add(done)  # Raises Diverged.
            log.progress(done, plan.epoch(done.step))
            if row:
                log.write(row)

    while True:
        # Score the splits that are due, unless an earlier start has.
        for split in plan.splits_due(config.eval_every_epochs, step):
            for rows in [] if metrics.row(step, split) else trainer.eval_batches(split):
                if stop.signal:
                    break
                settle(trainer.evaluate(state, step, split, rows))

        # Save when that is due and before a stop. A state that has diverged is never saved.
        stopping = stop.signal is not None
        save = stopping or plan.is_due(config.checkpoint_every_epochs, step)
        if save:
            settle(trainer.drain())
            accuracy = metrics.row(step, plan.result("validation")).get("accuracy")
            checkpoints.save(state, sums=metrics.sums(step), validation_accuracy=accuracy)
        if stopping or step == plan.num_steps:
            return state, step

        # Train to the end of the epoch.
        for rows in trainer.epoch_batches(step):
            if stop.signal:
                break
            state, done = trainer.train(state, step, rows)
            step += len(rows)
            settle(done)
        checkpoints.check()


if __name__ == "__main__":
    raise SystemExit("error: the command is python -m resnet_cifar train")
