"""What a run shows, and what it leaves in its workdir: progress, metrics.jsonl, TensorBoard events, summary.json."""

import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import tqdm
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from resnet_cifar.errors import UserError
from resnet_cifar.report.plots import plot_curves
from resnet_cifar.workdir import write_atomically

PLAIN_LINE_SECONDS = 30


class RunLog:
    """Writes the records of one run; a context manager that closes its files.

    A record is a row of `metrics.jsonl`, keyed by step and split, and timings are only in fields whose names say
    `seconds` or `per_second`.
    """

    def __init__(
        self, workdir: Path, *, step: int, num_steps: int, steps_per_epoch: int, batch_size: int
    ):
        """Open the files to go on after `step`; rows of later steps, of a run cut off, are dropped."""
        self.workdir = workdir
        self._steps_per_epoch = steps_per_epoch
        self.rows = [row for row in read_rows(workdir) if row["step"] <= step]
        write_atomically(
            workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows)
        )
        self._file = (workdir / "metrics.jsonl").open("a")
        # Not through SummaryWriter: once its thread has met a full disk, the next event waits for ever.
        self._events = EventsWriter(str(workdir / "events"))
        self._write_event(
            step + 1, session_log={"status": 1}
        )  # Hides what an earlier start wrote from there on.
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
        row = {
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 3),
            "split": split,
            **values,
        }
        self.rows.append(row)
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._write_event(step, summary=scalar(f"{split}/{name}", value))
        self._events.flush()
        self.say(format_row(row))

    def _write_event(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)  # pyright: ignore[reportAttributeAccessIssue]
        self._events.write_event(event)

    def row(self, step: int, split: str) -> dict[str, Any]:
        """Return the row of this step and split, an empty one where there is none."""
        return next((row for row in self.rows if row["step"] == step and row["split"] == split), {})

    def finish(
        self, summary: dict[str, Any], *, title: str, learning_rates: list[tuple[float, float]]
    ) -> None:
        """Write `curves.png` and then `summary.json`, which says that the run is complete."""
        plot_curves(self.rows, learning_rates, title, self.workdir / "curves.png")
        write_atomically(self.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")


def format_row(row: dict[str, Any]) -> str:
    """Return a record as one line for people."""
    parts = [
        f"epoch {row['epoch']:g}",
        f"step {row['step']:,}",
        f"{row['split']:<10} loss {row['loss']:.4f}",
    ]
    parts.append(f"accuracy {row['accuracy']:.2%}")
    if "top5_accuracy" in row:
        parts.append(f"top-5 {row['top5_accuracy']:.2%}")
    if "learning_rate" in row:
        parts.append(f"learning rate {row['learning_rate']:.4g}")
    if "images_per_second" in row:
        parts.append(f"{row['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a `metrics.jsonl`, without a last line cut off in the middle; UserError if damaged."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.endswith("\n"):
                row = json.loads(line)
                rows.append(
                    {"step": row["step"], "epoch": row["epoch"], "split": row["split"]} | row
                )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of {path} is damaged ({error!r}): put the file back, or choose another --workdir"
            ) from error
    return rows
