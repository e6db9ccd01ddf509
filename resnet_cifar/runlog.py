"""What a run shows, and what it leaves in its workdir: progress, metrics.jsonl, TensorBoard events, summary.json."""

import datetime
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import tensorboardX
import tqdm

from resnet_cifar.plots import plot_curves
from resnet_cifar.workdir import write_atomically

PLAIN_LINE_SECONDS = 30


class RunLog:
    """Writes the records of one run; a context manager that closes its files.

    A record is a row of `metrics.jsonl`, keyed by step and split, and timings are only in fields whose names say
    `seconds` or `per_second`.
    """

    def __init__(self, workdir: Path, *, step: int, num_steps: int, steps_per_epoch: int, batch_size: int):
        """Open the files to go on after `step`; rows of later steps, of a run cut off, are dropped."""
        self.workdir = workdir
        self._steps_per_epoch = steps_per_epoch
        self.rows = [row for row in read_rows(workdir) if row["step"] <= step]
        write_atomically(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = (workdir / "metrics.jsonl").open("a")
        self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1 if step else None)
        self._bar = tqdm.tqdm(
            total=num_steps * batch_size,
            initial=step * batch_size,
            unit=" images",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
        )
        self._batch_size, self._num_steps = batch_size, num_steps
        self._first_step = self._step = step
        self._start = self._said = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        self._file.close()
        self._events.close()

    def advance(self, steps: int) -> None:
        """Move the progress bar; where there is none, print a line every half a minute."""
        self._bar.update(steps * self._batch_size)
        self._step += steps
        elapsed = time.perf_counter() - self._start
        if self._bar.disable and time.perf_counter() - self._said > PLAIN_LINE_SECONDS:
            rate = (self._step - self._first_step) / elapsed
            left = datetime.timedelta(seconds=round((self._num_steps - self._step) / rate))
            speed = f"{rate * self._batch_size:,.0f} images/s with all there is to do"
            self.say(f"step {self._step:,} of {self._num_steps:,}  {speed}  {left} left")

    def say(self, line: str) -> None:
        """Print a line, above the progress bar where there is one."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()
        self._said = time.perf_counter()

    def record(self, step: int, split: str, values: dict[str, float]) -> None:
        """Add one row, to the files and to the screen."""
        row = {"step": step, "epoch": round(step / self._steps_per_epoch, 3), "split": split, **values}
        self.rows.append(row)
        # JSON has no NaN.
        finite = {k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        self.say(format_row(row))

    def has(self, step: int, split: str) -> bool:
        """Tell whether there is a row of this step and split."""
        return any(row["step"] == step and row["split"] == split for row in self.rows)

    def finish(self, summary: dict[str, Any], *, title: str, learning_rates: list[tuple[float, float]]) -> None:
        """Write `curves.png` and then `summary.json`, which says that the run is complete."""
        plot_curves(self.rows, learning_rates, title, self.workdir / "curves.png")
        write_atomically(self.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")


def format_row(row: dict[str, Any]) -> str:
    """Return a record as one line for people."""
    parts = [f"epoch {row['epoch']:g}", f"step {row['step']:,}", f"{row['split']:<10} loss {row['loss']:.4f}"]
    parts.append(f"accuracy {row['accuracy']:.2%}")
    if "top5_accuracy" in row:
        parts.append(f"top-5 {row['top5_accuracy']:.2%}")
    if "learning_rate" in row:
        parts.append(f"learning rate {row['learning_rate']:.4g}")
    if "images_per_second" in row:
        parts.append(f"{row['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a `metrics.jsonl`; a last line cut off in the middle is left out."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
