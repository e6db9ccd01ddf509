"""Variants are ranked by validation alone, and compared seed by seed."""

import math

import pytest
from scipy import stats
from synthetic_runs import make_grid, make_run, make_validated

from resnet_cifar.report.ranking import best_by_validation, gains, seeds_needed
from resnet_cifar.report.variant_tables import variants_table
from resnet_cifar.report.variants import group_by_variant


@pytest.fixture
def grid():
    return make_grid()


def test_the_best_variant_is_that_of_validation(grid):
    best = best_by_validation(grid, "cifar10", 56)
    assert best is not None and best.endswith("learning_rate=0.2, weight_decay=0.0005")
    lines = variants_table(grid)
    assert any(
        line.startswith("Best of ResNet56 on cifar10 by validation: learning_rate=0.2,")
        for line in lines
    )
    heading = "| variant | data | network | validation accuracy (%) | test accuracy (%), seeds |"
    assert any(line.startswith(heading) for line in lines)


def test_nothing_is_ranked_without_a_validation_split(grid):
    grid["card"] = [make_run(seed=seed) for seed in (0, 1)]
    assert best_by_validation(grid, "cifar10", 56) is None
    assert any(line.startswith("Not ranked") for line in variants_table(grid))


def test_many_variants_are_compared_with_the_best(grid):
    found = gains(grid)
    best = best_by_validation(grid, "cifar10", 56)
    assert len(found) == 5 and {gain.over for gain in found} == {best}
    few = dict(list(grid.items())[:3])
    assert len(gains(few)) == 3


def test_changes_of_one_thing_are_compared_with_their_baseline():
    changes = [{}, {"cutout": 8}, {"nesterov": True}, {"mixup": 1, "mixup_off_epochs": 4}]
    changes.append({"label_smoothing": 0.1})
    accuracy = [0.80, 0.90, 0.91, 0.92, 0.93]
    runs = [
        make_validated(score + 0.001 * seed, num_epochs=20, seed=seed, **fields)
        for fields, score in zip(changes, accuracy, strict=True)
        for seed in (0, 1)
    ]
    groups = group_by_variant(runs)
    assert {gain.over for gain in gains(groups)} == {"card with train_split=train[:45000], "
        "validation_split=train[45000:], num_epochs=20"}  # fmt: skip


def test_the_seeds_needed_are_the_fewest_that_suffice():
    for deviation in (0.001, 0.003, 0.01):
        n = seeds_needed(deviation, 0.002)
        assert n is not None
        half = [stats.t.ppf(0.975, k - 1) * deviation / math.sqrt(k) for k in (n, n - 1)]
        assert half[0] <= 0.002 and (n == 2 or half[1] > 0.002)
    assert seeds_needed(0.5, 0.002) is None
