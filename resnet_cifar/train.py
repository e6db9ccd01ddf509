"""The loop: train, evaluate, record, save, and go on where an earlier start stopped."""

from pathlib import Path

from resnet_cifar import describe
from resnet_cifar.checkpoint import Checkpoints
from resnet_cifar.config import Config, validate
from resnet_cifar.run import Run, blank_splits
from resnet_cifar.runlog import RunLog
from resnet_cifar.steps import TrainState
from resnet_cifar.workdir import check_workdir, claim_workdir


def train_and_evaluate(config: Config, workdir: str | Path) -> TrainState:
    """Train by a config, or go on where an earlier start of the same run stopped, and score the test set.

    Args:
      config: the run.
      workdir: folder for its files; made if it is not there.

    Returns:
      The state after the last step.

    Raises:
      UserError: the config, the data or the workdir do not allow the run; nothing was written over.
    """
    validate(config)
    folder = check_workdir(workdir, config)
    run = Run(config)
    plan = run.plan
    print("\n".join([*describe.header(run), f"workdir    {folder}"]), flush=True)
    claim_workdir(folder, config)
    with Checkpoints(folder, describe.explanation(run), validated=run.watched == "validation") as checkpoints:
        state, resumed = checkpoints.restore(run.init_state())
        step = int(state.step)
        if step == plan.num_steps and (folder / "summary.json").exists():
            print(f"finished before: see {folder / 'summary.json'}")
            return state
        lengths = {"num_steps": plan.num_steps, "steps_per_epoch": plan.steps_per_epoch}
        with RunLog(folder, step=step, batch_size=config.batch_size, **lengths) as log:
            if resumed:
                log.say(f"resuming from the checkpoint of step {step:,} (epoch {step / plan.steps_per_epoch:g})")
            while step < plan.num_steps:
                epoch = step // plan.steps_per_epoch
                steps = min(plan.steps_per_epoch, plan.num_steps - step)
                state, row = run.train_epoch(state, epoch, steps, log.advance)
                step += steps
                log.record(step, "train", row)
                last, scores = step == plan.num_steps, {}
                if last or due(config.eval_every_epochs, epoch + 1):
                    scores = run.evaluate(state, run.watched)
                    log.record(step, run.watched, scores)
                if last or due(config.checkpoint_every_epochs, epoch + 1):
                    checkpoints.save(state, scores.get("accuracy") if run.watched == "validation" else None)
            if not log.has(step, "test"):
                log.record(step, "test", run.evaluate(state, "test"))
            summary = describe.summary(run, log.rows)
            result = f"{summary['test_accuracy']:.2%} of the test images"
            log.finish(summary, title=f"{describe.title(run)}: {result}", learning_rates=describe.learning_rates(run))
            log.say(
                f"done: {result} after {step:,} steps and {summary['train_seconds']:,.0f} s of training; "
                f"see {folder / 'curves.png'}"
            )
    return state


def dry_run(config: Config) -> None:
    """Print what a run would be, down to the FLOPs and the memory of a step; needs no data and trains nothing."""
    validate(config)
    run = Run(config, load=blank_splits)
    print("\n".join(describe.header(run)), flush=True)
    print("\n".join(describe.costs(run)))


def due(every: int, epoch: int) -> bool:
    """Tell whether something done every so many epochs, 0 meaning never, is due after this one."""
    return every > 0 and epoch % every == 0
