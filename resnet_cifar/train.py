"""The loop: train, evaluate, record, save, and resume where an earlier start stopped."""

from pathlib import Path

import jax

from resnet_cifar import describe
from resnet_cifar.checkpoint import Checkpoints
from resnet_cifar.config import Config, validate
from resnet_cifar.errors import Diverged, UserError
from resnet_cifar.log import Log, read_rows
from resnet_cifar.metrics import Done, Metrics, resumed_rows
from resnet_cifar.plan import blank_splits
from resnet_cifar.programs import Programs
from resnet_cifar.provenance import checkpoint_metadata, differences
from resnet_cifar.steps import TrainState
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
      programs: compiled by a run that differed only in its seed, to be used again.

    Returns:
      The state after the last step.

    Raises:
      UserError: the config, the data or the workdir do not allow the run, or it diverged. No file
        of another run and no good checkpoint was touched.
      Stopped: the run was asked to stop, and saved.
    """
    validate(config)
    folder = check_workdir(workdir, config)
    return run(Trainer(config, programs=programs), folder, stop or Stop())


def dry_run(config: Config) -> None:
    """Print what a run would be and what a step costs; needs no data and trains nothing."""
    validate(config)
    trainer = Trainer(config, load=blank_splits)
    print("\n".join(describe.header(trainer)), flush=True)
    print("\n".join(describe.costs(trainer)))


def run(trainer: Trainer, folder: Path, stop: Stop) -> TrainState:
    """Run a trainer in a workdir, which `check_workdir` has returned; as `train_and_evaluate`."""
    print("\n".join([*describe.header(trainer), f"workdir    {folder}"]), flush=True)
    with claimed(folder, trainer.config) as saved_config:
        try:
            same_cadence = saved_config["eval_every_epochs"] == trainer.config.eval_every_epochs
            eval_every = trainer.config.eval_every_epochs if same_cadence else 1
            return _run(trainer, folder, stop, eval_every)
        except Diverged as error:
            write_atomically(folder / "diverged.txt", f"{error}\n")
            raise


def _run(trainer: Trainer, folder: Path, stop: Stop, eval_every: int) -> TrainState:
    config, plan = trainer.config, trainer.plan
    metadata = checkpoint_metadata(config, str(trainer.programs.dtype))
    with Checkpoints(folder, metadata) as checkpoints:
        # Resume from the newest good checkpoint, or start.
        restored = checkpoints.restore(jax.eval_shape(trainer.init_state))
        state = restored.state if restored else trainer.init_state()
        state = trainer.programs.devices.replicate(state)
        step = int(state.step)
        if step == plan.num_steps and (folder / "summary.json").exists():
            print(f"already finished: see {folder / 'summary.json'}")
            return state
        metrics = Metrics(
            plan,
            trainer.programs.learning_rate,
            rows=resumed_rows(read_rows(folder), plan, step, eval_every),
            sums=restored.metadata.get("sums") if restored else None,
            step=step,
        )
        if step >= plan.steps_per_epoch and not metrics.row(plan.epoch_start(step), "train"):
            raise UserError(
                f"{folder / 'metrics.jsonl'} lacks rows from before the checkpoint of step "
                f"{step:,}: restore the file, or choose another --workdir"
            )
        print(describe.compiling(trainer), flush=True)
        trainer.compile(state, step)
        write_config(folder, config)
        (folder / "summary.json").unlink(missing_ok=True)  # Left by a run with fewer epochs.
        (folder / "diverged.txt").unlink(missing_ok=True)  # Left by an earlier start.

        sizes = {"num_steps": plan.num_steps, "batch_size": config.batch_size}
        with Log(folder, metrics.rows, step=step, **sizes) as log:
            if restored:
                log.say(
                    f"resuming from the checkpoint of step {step:,} ({plan.epoch(step):g} epochs)"
                )
                for change in differences(restored.metadata, metadata):
                    log.say(f"environment not as it was, so bits may differ: {change}")

            def settle(finished: list[Done]) -> None:
                for done in finished:
                    row = metrics.add(done)  # Raises Diverged.
                    log.progress(done, plan.epoch(done.step))
                    if row:
                        log.write(row)

            stop.hold()  # From now on there is something to save.
            while True:
                # Score what is due, unless an earlier start has.
                if step == plan.num_steps:
                    splits = dict.fromkeys([plan.watched, "test"])  # Once if they are the same.
                else:
                    splits = [plan.watched] if plan.is_due(config.eval_every_epochs, step) else []
                for split in splits:
                    for rows in [] if metrics.row(step, split) else trainer.eval_batches(split):
                        if stop.signal:
                            break
                        settle(trainer.evaluate(state, step, split, rows))

                # Save what is due, and on a stop. What has diverged is never saved.
                save = plan.is_due(config.checkpoint_every_epochs, step)
                stopping = stop.signal is not None
                if save or stopping:
                    settle(trainer.drain())
                finished = bool(metrics.row(plan.num_steps, "test"))
                if save or (stopping and not finished):
                    accuracy = metrics.row(step, "validation").get("accuracy")
                    checkpoints.save(state, sums=metrics.sums(step), validation_accuracy=accuracy)
                if finished or stopping:
                    break

                # Train to the end of the epoch.
                for rows in trainer.epoch_batches(step):
                    if stop.signal:
                        break
                    state, done = trainer.train(state, step, rows)
                    step += len(rows)
                    settle(done)
                checkpoints.check()

            checkpoints.wait()
            if not finished:
                raise Stopped(
                    f"saved at step {step:,} of {plan.num_steps:,}: the same command resumes there"
                )
            summary = describe.summary(trainer, metrics.rows)
            result = f"{summary['test_accuracy']:.2%} of the test images"
            log.finish(
                summary,
                metrics.rows,
                title=f"{describe.title(trainer)}: {result}",
                learning_rates=describe.learning_rates(trainer),
            )
            seconds = f"{summary['train_seconds']:,.0f} s of training"
            log.say(f"done: {result} after {seconds}; see {folder / 'curves.png'}")
    return state
