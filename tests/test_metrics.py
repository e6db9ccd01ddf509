"""Rows are means over every image of a split or of an epoch, and never over numbers gone wrong."""

import dataclasses
import math

import numpy as np
import pytest

from resnet_cifar.config import Config
from resnet_cifar.errors import Diverged
from resnet_cifar.metrics import Done, RunMetrics, resumed_rows
from resnet_cifar.plan import Plan

PLAN = Plan(
    {"train": range(8), "validation": range(8, 10), "test": range(15)},
    steps_per_epoch=4,
    num_steps=14,
    warmup_steps=0,
    decay_steps=(),
    num_train=8,
)


def steps(step, losses, *, norms=None, seconds=1.0):
    """Return a dispatch of training steps with two images each."""
    n = len(losses)
    metrics = {
        "loss_sum": np.array(losses, np.float32),
        "correct": np.ones(n, np.float32),
        "count": np.full(n, 2, np.float32),
        "grad_norm": np.array(norms or [1.0] * n, np.float32),
    }
    return Done("train", step, metrics, seconds)


def scores(count, *, loss=1.0, split="test"):
    metrics = {"loss_sum": [loss], "correct": [4], "correct_top5": [count], "count": [count]}
    return Done(split, 8, {name: np.array(v, np.float32) for name, v in metrics.items()}, 0.5)


def new_metrics(**resumed):
    return RunMetrics(PLAN, lambda step: step / 100, **resumed)


def test_an_epoch_makes_one_row_of_means():
    metrics = new_metrics()
    assert metrics.add(steps(4, [2.0], norms=[3.0])) is None
    row = metrics.add(steps(5, [1.0, 1.0, 4.0], seconds=3.0))
    assert row == {
        "step": 8,
        "epoch": 2.0,
        "split": "train",
        "loss": 1.0,
        "accuracy": 0.5,
        "grad_norm": 1.5,
        "learning_rate": 0.07,
        "train_seconds": 4.0,
        "images_per_second": 2.0,
    }
    assert metrics.rows == [row] and metrics.row(8, "train") is row
    assert metrics.row(8, "test") == {}


def test_the_last_epoch_may_be_short():
    row = new_metrics().add(steps(12, [1.0, 1.0]))
    assert (row["step"], row["epoch"]) == (14, 3.5)


def test_an_evaluation_makes_a_row_once_every_image_is_scored():
    metrics = new_metrics()
    assert metrics.add(scores(10, loss=20.0)) is None
    row = metrics.add(scores(5, loss=10.0))
    assert row["loss"] == 2.0 and row["accuracy"] == 8 / 15 and row["top5_accuracy"] == 1.0
    assert row["eval_seconds"] == 1.0


def test_an_image_scored_twice_is_an_error():
    with pytest.raises(RuntimeError, match="16 images were scored instead of 15"):
        new_metrics().add(scores(16))


def test_sums_restored_in_an_epoch_give_the_same_row():
    whole = new_metrics()
    for step, loss in enumerate((1 / 3, 1 / 7, 0.1, 0.2)):
        row = whole.add(steps(step, [loss]))
    first = new_metrics()
    first.add(steps(0, [1 / 3, 1 / 7], seconds=2.0))
    assert first.sums(4) == first.sums(0) == {}
    second = new_metrics(sums=first.sums(2), step=2)
    assert second.add(steps(2, [0.1, 0.2], seconds=2.0)) == row


def test_the_sums_of_a_short_last_epoch_are_kept_for_a_longer_run():
    metrics = new_metrics()
    metrics.add(steps(12, [1.0, 1.0]))
    assert metrics.sums(14)["steps"] == 2


@pytest.mark.parametrize("broken", ["loss", "norm"])
def test_the_first_step_that_is_not_finite_is_named(broken):
    metrics = new_metrics()
    metrics.add(steps(0, [1.0], norms=[0.5]))
    values = [1.0, math.inf if broken == "loss" else 1.0, math.nan]
    norms = [2.5, math.nan if broken == "norm" else 1.0, 1.0]
    with pytest.raises(Diverged, match=r"^step 3 \(epoch 0.75\), at learning rate 0.02, .* 2.5 in"):
        metrics.add(steps(1, values, norms=norms))


def test_the_norm_before_a_dispatch_is_remembered():
    metrics = new_metrics()
    metrics.add(steps(0, [1.0], norms=[0.5]))
    with pytest.raises(Diverged, match=r"after 0\.5 in the step before"):
        metrics.add(steps(1, [math.nan]))


def test_an_evaluation_that_is_not_finite_is_a_divergence():
    with pytest.raises(Diverged, match="the loss of the test split is nan: the run has diverged"):
        new_metrics().add(scores(15, loss=math.nan))


def rows_at(*places):
    return [{"step": step, "epoch": step / 4, "split": split} for step, split in places]


def kept(rows, step, *, every=1, before=1):
    config = Config(eval_every_epochs=every)
    saved = dataclasses.asdict(Config(eval_every_epochs=before))
    found = resumed_rows(rows, PLAN, step, config, saved)
    return [(row["step"], row["split"]) for row in found]


def test_rows_after_the_checkpoint_are_dropped():
    places = [(4, "train"), (4, "validation"), (8, "train")]
    assert kept(rows_at(*places), 7) == places[:2]
    assert kept(rows_at(*places), 8) == places


def test_rows_of_a_shorter_run_are_dropped():
    places = [(8, "train"), (8, "validation"), (8, "test"), (10, "train"), (10, "validation")]
    assert kept(rows_at(*places), 10) == places[:2]


def test_rows_of_another_cadence_stay():
    places = [(4, "validation"), (8, "validation")]
    assert kept(rows_at(*places), 8, every=2, before=1) == places
    assert kept(rows_at(*places), 8, every=2, before=2) == places[1:]
