"""Heat maps of sweeps over two fields."""

import math

import numpy as np
import pytest
from synthetic_runs import make_grid, make_run

from resnet_cifar.report.heat_maps import heat_map_figure, heat_maps
from resnet_cifar.report.ranking import best_by_validation
from resnet_cifar.report.variants import group_by_variant


@pytest.fixture
def grid():
    return make_grid()


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
    one = [make_run(learning_rate=rate) for rate in (0.1, 0.2, 0.4)]
    three = [*one, make_run(momentum=0.5), make_run(weight_decay=0.1)]
    assert heat_maps(group_by_variant(one)) == heat_maps(group_by_variant(three)) == {}
