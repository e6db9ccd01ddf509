"""Timing of whole runs, shared by the benchmarks."""

import itertools
import tempfile
from pathlib import Path

from resnet_cifar.config import Config
from resnet_cifar.log import read_rows
from resnet_cifar.metrics import Done
from resnet_cifar.stop import Stop
from resnet_cifar.train import run
from resnet_cifar.trainer import Trainer
from resnet_cifar.workdir import check_workdir


class StampedTrainer(Trainer):
    """Notes when each epoch has ended."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.ends: list[float] = []

    def _finish(self, *, leave: int) -> list[Done]:
        finished = super()._finish(leave=leave)
        for done in finished:
            step = done.step + done.num_steps
            if done.split == "train" and step == self.plan.epoch_end(done.step):
                self.ends.append(done.end)
        return finished


def time_epochs(config: Config) -> tuple[list[float], list[float]]:
    """Return the seconds of each epoch of a whole run but the first, and of each evaluation."""
    with tempfile.TemporaryDirectory() as workdir:
        trainer = StampedTrainer(config)
        run(trainer, check_workdir(workdir, config), Stop())
        rows = read_rows(Path(workdir))
    evaluations = [row["eval_seconds"] for row in rows if row["split"] != "train"]
    between = evaluations if config.eval_every_epochs == 1 else itertools.repeat(0.0)
    pairs = zip(itertools.pairwise(trainer.ends), between, strict=False)
    return [end - start - other for (start, end), other in pairs], evaluations
