"""Pictures of what variants gain over their reference."""

import pytest
from synthetic_runs import make_run

from resnet_cifar.report.gain_plots import draw_gains, gains_figure
from resnet_cifar.report.ranking import gains, ranked
from resnet_cifar.report.variants import group_by_variant, label_variants

CHANGES = [{}, {"cutout": 8}, {"mixup": 1.0}, {"nesterov": True}, {"label_smoothing": 0.1}]


@pytest.fixture
def groups():
    """A baseline and four changes of it, the k-th k points better, and seed 1 another 0.1."""
    runs = [
        make_run(seed=seed, accuracy=0.8 + 0.01 * k + 0.001 * seed * k, **change)
        for k, change in enumerate(CHANGES)
        for seed in (0, 1)
    ]
    return group_by_variant(runs)


def test_gains_are_drawn_in_their_order_with_intervals(groups):
    figure = gains_figure({"ResNet56": ranked(gains(groups))}, label_variants(groups))
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [
        "label_smoothing=0.1 (n=2)", "nesterov=True (n=2)", "mixup=1 (n=2)", "cutout=8 (n=2)",
    ]  # fmt: skip
    points, _, (bars,) = axes.containers[0]
    assert points.get_xdata() == pytest.approx([4.2, 3.15, 2.1, 1.05])
    # t(0.975, 1) = 12.706, and the deviation of x and x + 0.1 k, over sqrt(2), is 0.05 k.
    halves = [(end[0] - start[0]) / 2 for start, end in bars.get_segments()]
    assert halves == pytest.approx([2.5412, 1.9059, 1.2706, 0.6353], rel=1e-3)
    assert axes.get_xlabel() == "points of test accuracy over baseline, 95 % interval"


def test_gains_without_one_reference_are_not_drawn(groups, tmp_path):
    few = dict(list(groups.items())[:3])  # All pairs are compared.
    assert not draw_gains(few, tmp_path / "few.png")
    assert not draw_gains({}, tmp_path / "none.png")
    assert not [*tmp_path.iterdir()]
    assert draw_gains(groups, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 1000
