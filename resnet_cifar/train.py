"""The loop: train, evaluate, record, save, and go on where an earlier start stopped."""

from functools import partial
from pathlib import Path

import jax

from resnet_cifar import describe
from resnet_cifar.checkpoint import Checkpoints
from resnet_cifar.config import Config, validate
from resnet_cifar.errors import Diverged, UserError
from resnet_cifar.log import RunLog
from resnet_cifar.plan import blank_splits
from resnet_cifar.programs import Programs
from resnet_cifar.run import Metrics, Run, Sums, add
from resnet_cifar.steps import TrainState
from resnet_cifar.stop import Stop, Stopped
from resnet_cifar.workdir import check_workdir, claimed, write_atomically, write_config


def train_and_evaluate(
    config: Config, workdir: str | Path, stop: Stop | None = None, programs: Programs | None = None
) -> TrainState:
    """Train by a config, or go on where an earlier start of the same run stopped, and score the test set.

    Args:
      config: the run.
      workdir: folder for its files; made if it is not there.
      stop: polled; a run that is asked to stop saves first.
      programs: of a run that differed in its seed alone, so that nothing is compiled again.

    Returns:
      The state after the last step.

    Raises:
      UserError: the config, the data or the workdir do not allow the run, or it diverged; no file of another run and no
        good checkpoint was touched.
      Stopped: the run was asked to stop, and saved.
    """
    validate(config)
    stop = stop or Stop()
    folder = check_workdir(workdir, config)
    run = Run(config, programs=programs)
    print("\n".join([*describe.header(run), f"workdir    {folder}"]), flush=True)
    with claimed(folder, config):
        try:
            return _train(run, folder, stop)
        except Diverged as error:
            write_atomically(folder / "diverged.txt", f"{error}\n")
            raise


def _train(run: Run, folder: Path, stop: Stop) -> TrainState:
    """Go from the newest checkpoint to the summary."""
    plan = run.plan
    with Checkpoints(folder, describe.explanation(run)) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(run.init_state))
        state, sums = (restored.state, dict(restored.sums)) if restored else (run.init_state(), {})
        state, step = run.programs.place(state), int(state.step)
        if step == plan.num_steps and (folder / "summary.json").exists():
            print(f"finished before: see {folder / 'summary.json'}")
            return state
        run.compile(state, step)
        write_config(folder, run.config)
        (folder / "summary.json").unlink(missing_ok=True)  # Of a run that is being prolonged.
        (folder / "diverged.txt").unlink(missing_ok=True)  # Of a start before.
        lengths = {"num_steps": plan.num_steps, "steps_per_epoch": plan.steps_per_epoch}
        with RunLog(folder, step=step, batch_size=run.config.batch_size, **lengths) as log:
            if step >= plan.steps_per_epoch and not log.row(
                step - step % plan.steps_per_epoch, "train"
            ):
                raise UserError(
                    f"{folder / 'metrics.jsonl'} lacks rows from before the checkpoint of step {step:,}: put the file "
                    "back, or choose another --workdir"
                )
            if restored:
                log.say(
                    f"resuming from the checkpoint of step {step:,} (epoch {step / plan.steps_per_epoch:g})"
                )
                for change in describe.changed(restored.metadata):
                    log.say(f"not as it was, so that the bits of the result may differ: {change}")
            stop.hold()
            state, step, sums = _loop(
                run, state, step, sums, log=log, checkpoints=checkpoints, stop=stop
            )
            if not log.row(plan.num_steps, "test"):
                checkpoints.save(state, sums=sums)
                checkpoints.wait()
                raise Stopped(
                    f"saved at step {step:,} of {plan.num_steps:,}: the same command goes on from there"
                )
            checkpoints.wait()
            summary = describe.summary(run, log.rows)
            result = f"{summary['test_accuracy']:.2%} of the test images"
            log.finish(
                summary,
                title=f"{describe.title(run)}: {result}",
                learning_rates=describe.learning_rates(run),
            )
            log.say(
                f"done: {result} after {step:,} steps and {summary['train_seconds']:,.0f} s of training; "
                f"see {folder / 'curves.png'}"
            )
    return state


def _loop(
    run: Run,
    state: TrainState,
    step: int,
    sums: Sums,
    *,
    log: RunLog,
    checkpoints: Checkpoints,
    stop: Stop,
) -> tuple[TrainState, int, Sums]:
    """Train, evaluate and save to the end, or until asked to stop, perhaps in the middle of an epoch.

    Each turn begins with what is due after `step`: an earlier start may have been stopped before it was done. The work
    is enqueued, and its results are recorded while the next is under way.
    """
    config, plan = run.config, run.plan

    def finish(step: int, metrics: Metrics, seconds: float) -> None:
        nonlocal sums
        add(sums, metrics)
        sums["train_seconds"] = sums.get("train_seconds", 0.0) + seconds
        log.advance(len(metrics["count"]))
        if step == plan.num_steps or step % plan.steps_per_epoch == 0:
            log.record(step, "train", run.train_row(step, sums))
            sums = {}

    while True:
        epoch, within = divmod(step, plan.steps_per_epoch)
        last = step == plan.num_steps
        complete = last or (step > 0 and not within)
        splits = (
            dict.fromkeys([run.watched, "test"])
            if last
            else [run.watched] * due(config.eval_every_epochs, epoch)
        )
        for split in splits:  # At the end both, once if they are the same.
            if complete and not log.row(step, split):
                run.evaluate(state, split, finish=partial(log.record, step, split), stop=stop)
        save = complete and (last or due(config.checkpoint_every_epochs, epoch))
        stopping = stop.signal is not None
        if save or stopping:
            run.drain()  # What has diverged is not saved.
        if stopping and not log.row(plan.num_steps, "test"):
            return state, step, sums
        if save:
            checkpoints.save(state, validation_accuracy=log.row(step, "validation").get("accuracy"))
        if last:
            return state, step, sums
        state, step = run.train_epoch(state, step, finish=finish, stop=stop)
        checkpoints.check()


def dry_run(config: Config) -> None:
    """Print what a run would be, down to the FLOPs and the memory of a step; needs no data and trains nothing."""
    validate(config)
    run = Run(config, load=blank_splits)
    print("\n".join(describe.header(run)), flush=True)
    print("\n".join(describe.costs(run)))


def due(every: int, epoch: int) -> bool:
    """Tell whether something done every so many epochs, 0 meaning never, is due after this one."""
    return every > 0 and epoch % every == 0
