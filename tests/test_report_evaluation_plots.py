"""What the pictures of an evaluation show, read from their figures."""

import numpy as np
import pytest
from test_report_evaluations import make_evaluation

from resnet_cifar.evaluation import confident_mistakes
from resnet_cifar.report.evaluation_plots import (
    confusion_figure,
    mistakes_figure,
    percent,
    plot_evaluation,
    reliability_figure,
)


def texts(labels):
    return [label.get_text() for label in labels]


def test_the_reliability_diagram_shows_each_bin():
    evaluation = make_evaluation()
    bins = evaluation.main.scores.reliability
    upper, lower = reliability_figure(evaluation).axes
    accuracy, gap = upper.containers
    full = bins.count.argmax()
    assert accuracy[full].get_height() == pytest.approx(0.65)
    assert accuracy[full].get_height() + gap[full].get_height() == bins.confidence[full]
    assert [bar.get_height() for bar in lower.containers[0]] == bins.count.tolist()


def test_the_confusion_matrix_has_names_and_counts():
    evaluation = make_evaluation()
    (axes,) = confusion_figure(evaluation).axes
    assert texts(axes.get_xticklabels()) == texts(axes.get_yticklabels())
    assert texts(axes.get_yticklabels()) == list(evaluation.class_names)
    shown = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    confusion = evaluation.main.scores.confusion
    assert shown == {place: str(n) for place, n in np.ndenumerate(confusion) if n}


def test_many_classes_are_shown_by_their_mistakes():
    evaluation = make_evaluation(classes=100, n=1000)
    (axes,) = confusion_figure(evaluation).axes
    assert len(axes.patches) == 30
    counts = [bar.get_width() for bar in axes.patches]
    assert counts == sorted(counts, reverse=True)
    assert texts(axes.get_yticklabels())[0].startswith("class9")


def test_the_most_confident_mistakes_are_shown():
    evaluation = make_evaluation(n=300)
    evaluation.images.images[:, 0, 0, 0] = np.arange(300) % 256
    figure = mistakes_figure(evaluation)
    chosen = confident_mistakes(evaluation.main.outputs, evaluation.images.labels, 40)
    for axes, image in zip(figure.axes, chosen, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), evaluation.images.images[image])
        label = evaluation.class_names[evaluation.images.labels[image]]
        assert axes.get_title().startswith(f"{label}\n→ class")


@pytest.mark.parametrize("classes", [3, 30])
def test_a_network_without_mistakes_has_pictures(classes):
    evaluation = make_evaluation(classes, mistakes=False)
    assert not any(axes.images for axes in mistakes_figure(evaluation).axes)
    (axes,) = confusion_figure(evaluation).axes
    assert len(axes.texts) == (3 if classes == 3 else 0)


@pytest.mark.parametrize(
    ("probability", "text"), [(0.5, "50.00%"), (0.99994, "99.99%"), (0.999999, "> 99.99%")]
)
def test_no_probability_is_rounded_to_certainty(probability, text):
    assert percent(probability) == text


def test_three_pictures_are_written(tmp_path):
    plot_evaluation(make_evaluation(), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["confusion.png", "mistakes.png", "reliability.png"]
