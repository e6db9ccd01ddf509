"""Metrics and tests against closed forms and other implementations."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax as scipy_log_softmax

from resnet_cifar.evaluation import (
    Reliability,
    confident_mistakes,
    confusion_matrix,
    log_softmax,
    mcnemar,
    mean_of_probabilities,
    most_confused,
    reliability,
    score,
    top_k_hits,
)
from resnet_cifar.steps import top_k_hits as hits_of_the_step

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (200, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 200)


def confident(confidence, right, classes=10):
    """Return outputs and labels with the given confidence and whether the prediction is right."""
    confidence = np.asarray(confidence, float)
    rest = (1 - confidence) / (classes - 1)
    probabilities = np.repeat(rest[:, None], classes, axis=1)
    probabilities[:, 3] = confidence
    return np.log(probabilities), np.where(right, 3, 4)


def test_log_softmax_is_that_of_scipy():
    expected = scipy_log_softmax(LOGITS.astype(np.float64), axis=1)
    np.testing.assert_allclose(log_softmax(LOGITS), expected, atol=1e-12)
    assert np.isfinite(log_softmax(np.array([[1e4, -1e4]], np.float32))).all()


def test_nll_is_the_mean_loss_of_training():
    losses = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    assert score(log_softmax(LOGITS), LABELS).nll == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("k", [1, 5])
def test_hits_are_those_of_the_evaluation_step(k):
    tied = LOGITS.round() + 0.0  # Without -0.0, which JAX ranks below 0.0.
    ours = top_k_hits(log_softmax(tied), LABELS, k)
    np.testing.assert_array_equal(ours, hits_of_the_step(jnp.asarray(tied), jnp.asarray(LABELS), k))


def test_fewer_than_five_classes_are_all_in_the_top_five():
    scores = score(log_softmax(LOGITS[:, :3]), LABELS % 3)
    assert scores.correct_top5 == scores.n and scores.top5_accuracy == 1


def test_uniform_outputs_have_the_loss_of_chance():
    scores = score(np.full((10, 10), -math.log(10)), np.arange(10))
    assert scores.nll == pytest.approx(math.log(10))
    assert scores.correct == 1 and scores.accuracy == 0.1
    assert scores.reliability.error == pytest.approx(0)  # 10 % confident, 10 % right.


def test_calibration_error_by_hand():
    """Two images at 0.95, one right; three at 0.55, all right."""
    outputs, labels = confident([0.95, 0.95, 0.55, 0.55, 0.55], [1, 0, 1, 1, 1])
    found = reliability(outputs, labels)
    assert found.count[14] == 2 and found.count[8] == 3 and found.count.sum() == 5
    assert found.error == pytest.approx((2 * abs(0.5 - 0.95) + 3 * abs(1 - 0.55)) / 5)


def test_calibration_error_by_a_loop_over_bins():
    outputs = log_softmax(LOGITS)
    confidence, right = np.exp(outputs).max(1), outputs.argmax(1) == LABELS
    expected = 0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert reliability(outputs, LABELS).error == pytest.approx(expected)


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    outputs, labels = confident([0.5, 1 - 1e-12], [1, 1])
    assert reliability(outputs, labels, bins=4).count.tolist() == [0, 1, 0, 1]
    certain = np.log(np.maximum(np.eye(3), 1e-300))
    assert reliability(certain, np.arange(3)).count[-1] == 3


def test_empty_bins_count_for_nothing():
    nan = np.array([np.nan, 0.9])
    assert Reliability(np.array([0, 4]), nan, nan).error == 0


def test_the_confusion_matrix_by_hand():
    matrix = confusion_matrix(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]
    assert most_confused(matrix, 5) == [(2, 0, 2), (0, 1, 1)]
    assert most_confused(matrix, 1) == [(2, 0, 2)]


def test_class_accuracies_average_to_the_accuracy():
    scores = score(log_softmax(LOGITS), LABELS)
    counts = np.bincount(LABELS)
    assert scores.class_accuracy @ counts / counts.sum() == pytest.approx(scores.accuracy)
    assert scores.confusion.sum() == 200 and scores.confusion.trace() == scores.correct


def test_a_class_without_images_has_no_accuracy():
    found = score(log_softmax(LOGITS[:3]), np.array([0, 1, 1])).class_accuracy
    assert np.isfinite(found[:2]).all() and np.isnan(found[2:]).all()


def test_confident_mistakes_come_in_order():
    outputs, labels = confident([0.9, 0.6, 0.99, 0.7], [0, 0, 1, 0])
    assert confident_mistakes(outputs, labels, 2).tolist() == [0, 3]
    assert confident_mistakes(outputs, labels, 9).tolist() == [0, 3, 1]


def test_an_ensemble_is_the_mean_of_probabilities():
    members = [log_softmax(RNG.normal(0, 3, (20, 5))) for _ in range(3)]
    expected = np.mean([np.exp(member) for member in members], axis=0)
    np.testing.assert_allclose(np.exp(mean_of_probabilities(members)), expected, rtol=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 5), (3, 9), (7, 7), (40, 60)])
def test_mcnemar_is_twice_the_smaller_binomial_tail(b, c):
    first = np.array([True] * b + [False] * c + [True] * 4 + [False] * 2)
    second = np.array([False] * b + [True] * c + [True] * 4 + [False] * 2)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar(first, second) == (b, c, pytest.approx(min(1, 2 * tail)))


def test_networks_that_agree_do_not_differ():
    right = np.array([True, False])
    assert mcnemar(right, right) == (0, 0, 1.0)
