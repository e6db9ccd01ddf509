"""Timing of whole runs, shared by the benchmarks."""

import itertools
import tempfile
import time
from pathlib import Path
from unittest import mock

from resnet_cifar.config import Config
from resnet_cifar.log import RunLog, read_rows
from resnet_cifar.train import train_and_evaluate


def time_epochs(config: Config) -> tuple[list[float], list[float]]:
    """Return the seconds between the ends of consecutive epochs of a whole run, without evaluations, and those."""
    ends, record = [], RunLog.record

    def stamped(self, step, split, values):
        record(self, step, split, values)
        if split == "train":
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as workdir, mock.patch.object(RunLog, "record", stamped):
        train_and_evaluate(config, workdir)
        evaluations = [
            row["eval_seconds"] for row in read_rows(Path(workdir)) if row["split"] != "train"
        ]
    between = evaluations if config.eval_every_epochs == 1 else itertools.repeat(0.0)
    return [
        end - start - other
        for (start, end), other in zip(itertools.pairwise(ends), between, strict=False)
    ], evaluations
