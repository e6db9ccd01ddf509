"""What a run prints and writes: progress, metrics.jsonl, TensorBoard events, curves, summary."""

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
from resnet_cifar.metrics import Done, Row
from resnet_cifar.report.plots import plot_curves
from resnet_cifar.workdir import write_atomically

PLAIN_LINE_SECONDS = 30.0


class Log:
    """Writes and prints; a context manager that closes its files.

    Timings are only in fields whose names say `seconds` or `per_second`.
    """

    def __init__(
        self,
        workdir: Path,
        rows: list[Row],
        *,
        step: int,
        num_steps: int,
        batch_size: int,
        plain_line_seconds: float = PLAIN_LINE_SECONDS,
    ):
        """Replace the rows on the disk by those that a run resumes with, after `step` steps."""
        self._folder = workdir
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(workdir / "metrics.jsonl", text)
        self._file = (workdir / "metrics.jsonl").open("a")
        # SummaryWriter would wait forever for a thread that has met a full disk. The first event
        # hides the later events of an earlier start.
        self._events = EventsWriter(str(workdir / "events"))
        self._write_event(step + 1, session_log={"status": 1})
        self._bar = tqdm.tqdm(
            total=num_steps * batch_size,
            initial=step * batch_size,
            unit=" images",
            unit_scale=True,
            disable=not (sys.stderr and sys.stderr.isatty()),
            dynamic_ncols=True,
            leave=False,
        )
        self._batch_size, self._num_steps = batch_size, num_steps
        self._plain_line_seconds = plain_line_seconds
        self._first_step = self._step = step
        self._scored = 0
        self._start = self._last_line = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        self._file.close()
        self._events.close()

    def progress(self, done: Done, epoch: float) -> None:
        """Show a finished dispatch on the bar, or without a terminal in a line now and then."""
        images = int(done.metrics["count"].sum())
        loss = done.metrics["loss_sum"].sum() / max(images, 1)
        if done.split == "train":
            self._scored = 0
            self._step += done.num_steps
            self._bar.update(images)
            self._bar.set_postfix_str(f"epoch {epoch:.1f}, loss {loss:.3f}", refresh=False)
        else:
            self._scored += images
            self._bar.set_postfix_str(f"epoch {epoch:.1f}, {done.split} {self._scored:,}")
        now = time.perf_counter()
        if self._bar.disable and now - self._last_line > self._plain_line_seconds:
            rate = (self._step - self._first_step) / (now - self._start)
            speed = f"{rate * self._batch_size:,.0f} images/s overall"
            left = f"{duration(self._num_steps - self._step, rate)} left"
            where = f"step {self._step:,} of {self._num_steps:,}"
            if done.split != "train":
                where += f", scoring {done.split}: {self._scored:,} images"
            self.say(f"{where}  loss {loss:.4f}  {speed}  {left}")

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if sys.stdout:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()
        self._last_line = time.perf_counter()

    def write(self, row: Row) -> None:
        """Write one row to the files and print it."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name not in ("step", "epoch", "split"):
                summary = scalar(f"{row['split']}/{name}", value)
                self._write_event(row["step"], summary=summary)
        self._events.flush()
        self.say(format_row(row))

    def _write_event(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)  # pyright: ignore[reportAttributeAccessIssue]
        self._events.write_event(event)

    def finish(
        self,
        summary: dict[str, Any],
        rows: list[Row],
        title: str,
        learning_rates: list[tuple[float, float]],
    ) -> None:
        """Write `curves.png` and then `summary.json`, which marks the run as finished."""
        plot_curves(rows, learning_rates, title, self._folder / "curves.png")
        write_atomically(self._folder / "summary.json", json.dumps(summary, indent=2) + "\n")


class Silent:
    """A `Log` that writes and prints nothing, for processes beside the first."""

    def __init__(self, workdir: Path, rows: list[Row], **_: Any):
        """Take what `Log` takes."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def progress(self, done: Done, epoch: float) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Print nothing."""

    def write(self, row: Row) -> None:
        """Write nothing."""

    def finish(self, *_: Any) -> None:
        """Write nothing."""


def duration(steps: int, steps_per_second: float) -> str:
    if not steps_per_second:
        return "unknown time"
    return str(datetime.timedelta(seconds=round(steps / steps_per_second)))


def format_row(row: Row) -> str:
    """Return a row as one line to read."""
    parts = [
        f"epoch {row['epoch']:g}",
        f"step {row['step']:,}",
        f"{row['split']:<10} loss {row['loss']:.4f}",
        f"accuracy {row['accuracy']:.2%}",
    ]
    formats = {
        "top5_accuracy": "top-5 {:.2%}",
        "learning_rate": "learning rate {:.4g}",
        "images_per_second": "{:,.0f} images/s",
    }
    return "  ".join(parts + [text.format(row[n]) for n, text in formats.items() if n in row])


def read_rows(workdir: Path) -> list[Row]:
    """Return the complete rows of `metrics.jsonl`; UserError if one is damaged.

    A last line that was cut off is left out.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.endswith("\n"):
                row = json.loads(line)
                rows.append({key: row[key] for key in ("step", "epoch", "split")} | row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of {path} is damaged ({error!r}): restore the file, or choose "
                "another --workdir"
            ) from error
    return rows
