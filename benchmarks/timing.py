"""Timing of whole runs, shared by the benchmarks."""

import itertools
import tempfile
import time
from unittest import mock

from resnet_cifar.config import Config
from resnet_cifar.runlog import RunLog
from resnet_cifar.train import train_and_evaluate


def time_epochs(config: Config) -> list[float]:
    """Return the seconds between the ends of consecutive epochs of a whole run."""
    ends, record = [], RunLog.record

    def stamped(self, step, split, values):
        record(self, step, split, values)
        if split == "train":
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as workdir, mock.patch.object(RunLog, "record", stamped):
        train_and_evaluate(config, workdir)
    return [end - start for start, end in itertools.pairwise(ends)]
