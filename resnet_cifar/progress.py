"""The progress of a sweep: which runs are finished, and how long the others take."""

import datetime
from collections.abc import Callable
from typing import Any

from resnet_cifar.config import Config
from resnet_cifar.describe import accuracy_text
from resnet_cifar.devices import device_name
from resnet_cifar.grid import Job
from resnet_cifar.plan import blank_splits, make_plan
from resnet_cifar.report.runs import read_summary
from resnet_cifar.report.variants import with_fields
from resnet_cifar.trainer import Trainer
from resnet_cifar.workdir import check_resumable


def result(job: Job) -> dict[str, Any]:
    """Return the summary of a finished run, or {}; UserError if its folder has another run."""
    summary = read_summary(job.folder)
    if summary is None:
        return {}
    check_resumable(job.folder, summary["config"], job.config)
    return summary if summary["config"]["num_epochs"] == job.config.num_epochs else {}


def score(job: Job) -> str:
    summary = result(job)
    return f"{accuracy_text(summary)} after {summary['train_seconds']:,.0f} s of training"


def status(jobs: list[Job]) -> str:
    """Return a table of the finished runs of each network and combination, and how much is left."""
    depths = sorted({job.config.depth for job in jobs})
    shared = {n: v for n, v in jobs[0].overrides.items() if all(j.overrides[n] == v for j in jobs)}
    rows: dict[str, list[Job]] = {}
    for job in jobs:
        varying = {name: value for name, value in job.overrides.items() if name not in shared}
        label = f"{job.recipe:<7} {job.config.dataset:<11} {with_fields('', varying)}".rstrip()
        rows.setdefault(label, []).append(job)
    width = max(20, *(len(label) + 1 for label in rows))
    lines = [f"all runs: {with_fields('', shared)}"] if shared else []
    lines.append(f"{'finished':<{width}}" + "".join(f"{f'ResNet{depth}':>11}" for depth in depths))
    for label, own in rows.items():
        by_depth = [[bool(result(job)) for job in own if job.config.depth == d] for d in depths]
        counts = [f"{sum(done)} of {len(done)}" for done in by_depth]
        lines.append(f"{label:<{width}}" + "".join(f"{count:>11}" for count in counts))
    return "\n".join([*lines, time_left(jobs, [job for job in jobs if not result(job)])])


def time_left(jobs: list[Job], left: list[Job]) -> str:
    """Estimate the time for the runs that are left from that of the finished ones."""
    runs = f"{len(left)} run{'s' * (len(left) != 1)} left"
    done = [(job, summary) for job in jobs if (summary := result(job))]
    if not left or not done:
        return runs
    seconds = sum(summary["train_seconds"] + summary["eval_seconds"] for _, summary in done)
    seconds *= sum(cost(job.config) for job in left) / sum(cost(job.config) for job, _ in done)
    return f"{runs}, about {datetime.timedelta(seconds=round(seconds))} plus compilation"


def estimate(jobs: list[Job], timed: Callable[[Config], float] | None = None) -> str:
    """Estimate the time of a plan of which nothing is finished yet, from its smallest network.

    Returns "" if there are finished runs, from which `time_left` knows more.
    """
    if any(result(job) for job in jobs):
        return ""
    smallest = min((job.config for job in jobs), key=step_cost)
    seconds = (timed or seconds_per_step)(smallest)
    total = seconds * sum(cost(job.config) for job in jobs) / step_cost(smallest)
    return (
        f"about {datetime.timedelta(seconds=round(total))} of training, plus evaluation and "
        f"compilation, from a step of ResNet{smallest.depth} with {smallest.batch_size:,} images "
        f"timed just now: {seconds:.2g} s on {device_name()}"
    )


def seconds_per_step(config: Config) -> float:
    """Compile a network, train up to three dispatches on black images, and time a step."""
    trainer = Trainer(config, load=blank_splits)
    state = trainer.programs.devices.replicate(trainer.init_state())
    step, done = 0, []
    for rows in trainer.epoch_batches(0)[:3]:
        state, finished = trainer.train(state, step, rows)
        step, done = step + len(rows), [*done, *finished]
    return min(one.seconds / one.num_steps for one in (*done, *trainer.drain()))


def cost(config: Config) -> float:
    """Return the images of a run times the layers that each passes: proportional to its time."""
    return make_plan(config).num_steps * step_cost(config)


def step_cost(config: Config) -> float:
    return config.batch_size * (config.depth - 1)
