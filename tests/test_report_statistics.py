"""Statistics over seeds against numpy and closed forms."""

import math

import numpy as np
from synthetic_runs import make_diverged, make_run

from resnet_cifar.report.statistics import (
    TimedAccuracy,
    accuracy_against_time,
    learning_curves,
    paired_difference,
    spread,
)
from resnet_cifar.report.variants import group_by_variant


def test_the_deviation_is_that_of_a_sample():
    values = [0.931, 0.928, 0.935, 0.930]
    expected = (np.mean(values), np.std(values, ddof=1), 4)
    np.testing.assert_allclose(spread(values), expected)
    assert math.isnan(spread([0.9]).deviation)


def test_differences_are_paired_by_seed():
    ours = [make_run("strong", 0.93 + 0.01 * seed, seed=seed) for seed in (0, 1, 2)]
    baseline = [
        make_run("card", 0.92 + 0.01 * seed - 0.001 * (seed == 1), seed=seed)
        for seed in (2, 1, 0, 7)
    ]
    # Gains 0.010, 0.011, 0.010 deviate by 0.000577; t is 4.303 at 2 degrees of freedom.
    expected = (0.031 / 3, 4.303 * 0.00057735 / 3**0.5, 3, 0.00057735)
    np.testing.assert_allclose(paired_difference(ours, baseline), expected, rtol=1e-3)


def test_a_difference_needs_two_pairs():
    runs = [make_run(seed=seed) for seed in (0, 1)]
    assert paired_difference(runs, runs[:1]) is None and paired_difference(runs, []) is None


def test_a_curve_is_mean_and_deviation_over_the_seeds():
    runs = [make_run(seed=0, accuracy=0.90), make_run(seed=1, accuracy=0.92)]
    (curve,) = learning_curves({"card": runs})["CIFAR-10"]
    assert (curve.label, curve.epochs, curve.seeds) == ("ResNet56", [1, 2], 2)
    np.testing.assert_allclose(curve.mean, [50, 91])
    np.testing.assert_allclose(curve.deviation, [0, 2**0.5], atol=1e-12)


def test_a_curve_has_the_epochs_that_all_seeds_have():
    one, other = make_run(seed=0), make_run(seed=1, accuracy=0.8)
    other["epochs"]["test"] = {"epoch": [2], "accuracy": [0.8]}
    (curve,) = learning_curves({"card": [one, other]})["CIFAR-10"]
    assert curve.epochs == [2]


def test_every_variant_has_its_own_curve():
    groups = group_by_variant([make_run(), make_run(weight_decay=0.1), make_diverged(momentum=0.5)])
    labels = [curve.label for curve in learning_curves(groups)["CIFAR-10"]]
    assert labels == [
        "ResNet56, momentum=0.9, weight_decay=0.0001",
        "ResNet56, momentum=0.9, weight_decay=0.1",
    ]


def test_without_completed_runs_there_are_no_curves():
    assert learning_curves(group_by_variant([make_diverged()])) == {}


def test_times_are_means_over_the_seeds_of_a_device():
    fast, slow = make_run(accuracy=0.91), make_run(accuracy=0.93, seed=1)
    slow |= {"train_seconds": 150.0, "eval_seconds": 29.0}  # The other one takes 60 + 1 s.
    other = make_run(seed=2) | {"device": "Another GPU"}
    (another, some), peers = split_series({"card": [fast, slow, other]})
    assert (another.name, some.name) == ("card, Another GPU", "card, Some GPU")
    np.testing.assert_allclose(some.points[0][1:], (2.0, 92.0, 2**0.5))
    assert peers == []


def test_peers_without_a_time_are_left_out():
    peer = {"dataset": "cifar10", "name": "A", "device": "GPU", "accuracy": {"56": 93.1}}
    timed = {**peer, "name": "B", "minutes": {"56": 35}}
    _, peers = split_series({"card": [make_run()]}, [peer, timed])
    assert [(series.name, series.points) for series in peers] == [
        ("B, GPU", [TimedAccuracy("56", 35, 93.1, 0.0)])
    ]


def test_a_data_set_without_runs_has_no_panel():
    peer = {"name": "B", "device": "GPU", "accuracy": {"56": 70}, "minutes": {"56": 35}}
    peers = [peer | {"dataset": name} for name in ("cifar10", "cifar100")]
    assert accuracy_against_time({"card": [make_run()]}, peers).keys() == {"CIFAR-10"}


def split_series(by_recipe, peers=()):
    series = accuracy_against_time(by_recipe, list(peers))["CIFAR-10"]
    return [line for line in series if line.ours], [line for line in series if not line.ours]
