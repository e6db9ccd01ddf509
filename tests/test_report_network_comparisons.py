"""Networks compared on images and over seeds."""

import dataclasses

import numpy as np
import pytest

from resnet_cifar.config import Config
from resnet_cifar.evaluation import log_softmax, mcnemar, score
from resnet_cifar.report.evaluations import Result
from resnet_cifar.report.network_comparisons import compare_networks


def result(name, correct, n=4):
    """Return a result of which the first images are right."""
    predicted = (np.arange(n) >= correct).astype(int)
    outputs = log_softmax(np.eye(2)[predicted])
    return Result(name, False, outputs, score(outputs, np.zeros(n, int)))


def config(seed, learning_rate):
    made = Config(depth=8, dataset="synthetic", seed=seed, learning_rate=learning_rate)
    return dataclasses.asdict(made)


def test_each_network_is_compared_with_the_first_on_the_images():
    results = [result("a", 3), result("b", 1), result("c", 3)]
    comparison = compare_networks([{}] * 3, results)
    right = [own.scores.right for own in results]
    assert comparison.on_images == [
        ("a", "b", mcnemar(right[0], right[1])),
        ("a", "c", mcnemar(right[0], right[2])),
    ]
    accuracies = [0.75, 0.25, 0.75]
    assert comparison.accuracy.mean == pytest.approx(np.mean(accuracies))
    assert comparison.accuracy.deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert comparison.over_seeds == []


def test_variants_are_compared_over_their_common_seeds():
    configs = [*(config(seed, 0.1) for seed in (0, 1, 2)), config(0, 0.2), config(1, 0.2)]
    names = ["a0", "a1", "a2", "b0", "b1"]
    results = [result(name, n) for name, n in zip(names, [1, 2, 4, 3, 4], strict=True)]
    ((first, second, difference),) = compare_networks(configs, results).over_seeds
    assert "learning_rate=0.1" in first and "learning_rate=0.2" in second
    assert difference == (pytest.approx(0.5), pytest.approx(0), 2, pytest.approx(0))


@pytest.mark.parametrize("other", [config(0, 0.2), config(1, 0.1), {}, {"dataset": "cifar10"}])
def test_without_two_common_seeds_there_is_no_pair(other):
    assert (
        compare_networks([config(0, 0.1), other], [result("a", 1), result("b", 2)]).over_seeds == []
    )
