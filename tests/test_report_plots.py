"""What the pictures show, read from their figures."""

import numpy as np
import pytest
from synthetic_runs import make_rows, make_run

from resnet_cifar.report.plots import (
    accuracy_against_time_figure,
    curves_figure,
    learning_figure,
    plot_curves,
)
from resnet_cifar.report.statistics import Curve, accuracy_against_time, learning_curves
from resnet_cifar.report.variants import group_by_variant

EPOCHS = [[0.5], [1, 2], [1, 2, 2.5], list(range(1, 201))]


def draw(epochs, **fields):
    rates = [(0.0, 0.1), (epochs[-1], 0.0)]
    return curves_figure(make_rows(epochs, ("train", "test"), **fields), rates, "title")


def tick_labels(axis):
    axis.figure.draw_without_rendering()
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [
        t.label1.get_text() for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()
    ]


def legend_texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("epochs", EPOCHS)
def test_epoch_ticks_are_whole_numbers(epochs):
    for axes in draw(epochs).axes:
        labels = tick_labels(axes.xaxis)
        assert len(labels) >= 2 and all(label.isdecimal() for label in labels)


@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("final_loss", [2.2, 1.0, 0.05, 1e-4])
def test_loss_labels_are_plain_numbers(epochs, final_loss):
    labels = tick_labels(draw(epochs, final_loss=final_loss).axes[0].yaxis)
    assert 2 <= len(labels) <= 20
    assert all(float(label) > 0 and "times" not in label for label in labels)


def test_the_legend_says_that_train_is_an_average():
    figure = draw([1, 2])
    assert legend_texts(figure.axes[0]) == ["train (epoch average): 0.050", "test: 0.050"]
    assert legend_texts(figure.axes[1]) == ["train (epoch average): 90.00 %", "test: 90.00 %"]


def test_splits_differ_in_style_and_marker():
    rows = make_rows([1, 2], ("train", "validation", "test"))
    lines = curves_figure(rows, [(0, 0.1), (2, 0.1)], "title").axes[0].lines
    for name in ("linestyle", "marker", "color"):
        assert len({getattr(line, f"get_{name}")() for line in lines}) == 3


def test_a_picture_of_a_run_is_written(tmp_path):
    plot_curves(make_rows([1], ["train"]), [(0, 0.1), (1, 0.1)], "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_band_is_one_deviation_to_either_side():
    curve = Curve("ResNet56", [1, 2], [91.0, 93.0], [2.0, 1.0], 3)
    (band,) = learning_figure({"CIFAR-10": [curve]}, "title").axes[0].collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert corners == {(1, 89), (1, 93), (2, 92), (2, 94)}


@pytest.mark.parametrize("count", [1, 3, 12])
def test_the_legend_is_below_the_lines_and_inside_the_figure(count):
    rates = np.linspace(0.1, 0.3, count)
    runs = [make_run(learning_rate=float(f"{r:.3f}"), train_split="train[:9]") for r in rates]
    figure = learning_figure(learning_curves(group_by_variant(runs)), "title " * 40)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend, panel = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert len(legend_texts(axes)) == count
    assert legend.y1 < panel.y0 and legend.y0 >= 0 and legend.x1 <= figure.bbox.x1
    assert panel.height > 0.3 * figure.bbox.height
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == count


def test_long_labels_stay_inside_the_figure():
    curve = Curve(", ".join(["some_field=some_value"] * 9), [1, 2], [1.0, 2.0], [0.0, 0.0], 1)
    figure = learning_figure({"CIFAR-10": [curve]}, "")
    figure.draw_without_rendering()
    assert figure.axes[0].get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_our_points_are_joined_and_those_of_peers_are_not():
    peer = {
        "dataset": "cifar10", "name": "them", "device": "GPU", "accuracy": {"56": 93.1},
        "minutes": {"56": 35},
    }  # fmt: skip
    runs = [make_run(depth=depth) for depth in (20, 56)]
    (axes,) = accuracy_against_time_figure(accuracy_against_time({"card": runs}, [peer])).axes
    assert legend_texts(axes) == ["ours, card, Some GPU", "them, GPU"]
    styles = [line.get_linestyle() for line in axes.get_legend().get_lines()]
    assert styles == ["-", "None"]
    assert [text.get_text() for text in axes.texts] == ["20", "56", "56"]
