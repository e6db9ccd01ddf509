"""Metrics: summed by split and step, checked to be finite, and turned into rows."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnet_cifar.config import Config
from resnet_cifar.errors import Diverged
from resnet_cifar.plan import Plan

Row = dict[str, Any]  # A line of metrics.jsonl: "step", "epoch", "split", and numbers.
Sums = dict[str, float]
MEANS = {"loss": "loss_sum", "accuracy": "correct", "top5_accuracy": "correct_top5"}
ADVICE = (
    "the run has diverged and ends here. Earlier checkpoints are intact. The same command would "
    "diverge again: try a lower --config.learning_rate or another --config.seed, in another "
    "--workdir"
)


class Done(NamedTuple):
    """A finished dispatch: training steps, or batches of a split scored."""

    split: str
    step: int  # Training steps made before it.
    metrics: dict[str, np.ndarray]  # Each [steps].
    seconds: float  # From the end of the dispatch before it, or from its own start.
    end: float = 0.0  # When it had finished, by time.perf_counter.

    @property
    def num_steps(self) -> int:
        return len(self.metrics["count"])


class RunMetrics:
    """The metrics of one run.

    Attributes:
      rows: finished rows, in the order in which they were finished.
    """

    def __init__(
        self,
        plan: Plan,
        learning_rate: Callable[[int], float],
        *,
        rows: Sequence[Row] = (),
        sums: Sums | None = None,
        step: int = 0,
    ):
        """Resume after `step` steps.

        Args:
          plan: of the run.
          learning_rate: of an update, given the number of updates before it.
          rows: finished before.
          sums: of the epoch in progress.
          step: training steps made before.
        """
        self.rows = list(rows)
        self._plan, self._learning_rate = plan, learning_rate
        self._sums: dict[tuple[str, int], Sums] = {}
        if sums:
            self._sums["train", plan.epoch_end(step)] = dict(sums)
        self._last_norm = math.nan

    def add(self, done: Done) -> Row | None:
        """Add a dispatch to the sums; return the row that it completes, if it does.

        Raises:
          Diverged: the loss or the gradient is not finite.
        """
        training = done.split == "train"
        if training:
            self._check_finite(done)
        end = self._plan.epoch_end(done.step) if training else done.step
        clock = "train_seconds" if training else "eval_seconds"
        sums = self._sums.setdefault((done.split, end), {"steps": 0, clock: 0.0})
        for name, values in done.metrics.items():
            sums[name] = sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
        sums["steps"] += done.num_steps
        sums[clock] += done.seconds
        size = self._plan.size(done.split)
        complete = done.step + done.num_steps == end if training else sums["count"] >= size
        return self._finish_row(done.split, end, sums) if complete else None

    def row(self, step: int, split: str) -> Row:
        """Return a finished row, an empty one if there is none."""
        return next((r for r in self.rows if r["step"] == step and r["split"] == split), {})

    def sums(self, step: int) -> Sums:
        """Return the sums of the epoch in progress after `step` steps, for a checkpoint."""
        within = step % self._plan.steps_per_epoch
        last = self._plan.epoch_end(step - 1)
        return dict(self._sums.get(("train", last), {})) if within else {}

    def _finish_row(self, split: str, step: int, sums: Sums) -> Row:
        row: Row = {"step": step, "epoch": round(self._plan.epoch(step), 3), "split": split}
        row |= {name: sums[key] / sums["count"] for name, key in MEANS.items() if key in sums}
        if split == "train":
            row |= {
                "grad_norm": sums["grad_norm"] / sums["steps"],
                "learning_rate": self._learning_rate(step - 1),
                "train_seconds": sums["train_seconds"],
                "images_per_second": sums["count"] / sums["train_seconds"],
            }
        else:
            size = self._plan.size(split)
            if sums["count"] != size:
                raise RuntimeError(f"{sums['count']:g} images were scored instead of {size}")
            if not math.isfinite(row["loss"]):
                raise Diverged(f"the loss of the {split} split is {row['loss']}: {ADVICE}")
            row["eval_seconds"] = sums["eval_seconds"]
        self.rows.append(row)
        return row

    def _check_finite(self, done: Done) -> None:
        """Raise Diverged at the first step whose loss or gradient is not finite."""
        norms, losses = done.metrics["grad_norm"], done.metrics["loss_sum"]
        for i in np.flatnonzero(~np.isfinite(losses + norms))[:1]:
            before = norms[i - 1] if i else self._last_norm
            after = "" if math.isnan(before) else f", after {before:.4g} in the step before"
            step = done.step + int(i) + 1
            raise Diverged(
                f"step {step:,} (epoch {self._plan.epoch(step):.2f}), at learning rate "
                f"{self._learning_rate(step - 1):.4g}, has the loss "
                f"{losses[i] / done.metrics['count'][i]:.4g} and a gradient of norm "
                f"{norms[i]:.4g}{after}: {ADVICE}"
            )
        self._last_norm = norms[-1]


def resumed_rows(
    rows: Sequence[Row], plan: Plan, step: int, config: Config, saved_config: dict[str, Any]
) -> list[Row]:
    """Return the rows that the run would have after `step` steps had it never been interrupted.

    The run makes later rows again. An earlier start with fewer epochs may have left rows where
    the longer run has none: within an epoch, or on the test set before the end.

    Args:
      rows: on the disk.
      plan: of the run.
      step: at which it resumes.
      config: of the run.
      saved_config: of the earlier start. Rows of another `eval_every_epochs` stay.
    """
    same = saved_config["eval_every_epochs"] == config.eval_every_epochs
    every = config.eval_every_epochs if same else 1

    def is_due(row: Row) -> bool:
        if row["split"] == "train":
            return plan.is_due(1, row["step"])
        return row["split"] in plan.splits_due(every, row["step"])

    return [row for row in rows if row["step"] <= step and is_due(row)]
