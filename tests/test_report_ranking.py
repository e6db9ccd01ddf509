"""Settings are ranked by validation alone, and compared seed by seed."""

import math

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import make_run, make_validated

from resnet_cifar.report.plots import heat_map_figure
from resnet_cifar.report.ranking import best_by_validation, gains, heat_maps, seeds_needed
from resnet_cifar.report.tables import variants_table
from resnet_cifar.report.variants import group_by_variant

RATES, DECAYS = (0.1, 0.2, 0.4), (1e-4, 5e-4)


@pytest.fixture
def grid():
    """Return runs whose validation is best at (0.2, 5e-4), and whose test is best elsewhere."""
    return group_by_variant(
        [
            make_validated(
                0.80 + 0.01 * (rate == 0.2) + 0.01 * (decay == 5e-4) + 0.001 * seed,
                accuracy=0.9 - 0.01 * (rate == 0.2),
                learning_rate=rate,
                weight_decay=decay,
                seed=seed,
            )
            for rate in RATES
            for decay in DECAYS
            for seed in (0, 1)
        ]
    )


def test_the_best_setting_is_that_of_validation(grid):
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


def test_many_settings_are_compared_with_the_best(grid):
    found = gains(grid)
    best = best_by_validation(grid, "cifar10", 56)
    assert len(found) == 5 and {gain.over for gain in found} == {best}
    few = dict(list(grid.items())[:3])
    assert len(gains(few)) == 3


def test_the_seeds_needed_are_the_fewest_that_suffice():
    for deviation in (0.001, 0.003, 0.01):
        n = seeds_needed(deviation, 0.002)
        assert n is not None
        half = [stats.t.ppf(0.975, k - 1) * deviation / math.sqrt(k) for k in (n, n - 1)]
        assert half[0] <= 0.002 and (n == 2 or half[1] > 0.002)
    assert seeds_needed(0.5, 0.002) is None


def test_a_heat_map_shows_mean_validation_by_two_fields(grid):
    ((title, found),) = heat_maps(grid).items()
    assert (title, found.split) == ("ResNet56 on cifar10", "validation")
    assert (found.y, found.y_values) == ("learning_rate", ["0.1", "0.2", "0.4"])
    assert (found.x, found.x_values) == ("weight_decay", ["0.0001", "0.0005"])
    expected = [[80.05, 81.05], [81.05, 82.05], [80.05, 81.05]]
    np.testing.assert_allclose(found.accuracy, expected)
    texts = [text.get_text() for text in heat_map_figure({title: found}).axes[0].texts]
    assert texts == ["80.05", "81.05", "81.05", "82.05", "80.05", "81.05"]


def test_a_missing_combination_is_an_empty_cell(grid):
    grid.pop(best_by_validation(grid, "cifar10", 56))
    ((_, found),) = heat_maps(grid).items()
    assert math.isnan(found.accuracy[1][1])
    texts = [text.get_text() for text in heat_map_figure(heat_maps(grid)).axes[0].texts]
    assert texts[3] == "-"


def test_there_is_no_heat_map_of_one_or_three_fields():
    one = [make_run(learning_rate=rate) for rate in RATES]
    three = [*one, make_run(momentum=0.5), make_run(weight_decay=0.1)]
    assert heat_maps(group_by_variant(one)) == heat_maps(group_by_variant(three)) == {}
