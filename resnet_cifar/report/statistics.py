"""Statistics over seeds: spread, paired differences, learning curves, accuracy against time."""

import math
import statistics
from typing import Any, NamedTuple

from resnet_cifar.report.runs import (
    CARD_DEPTHS,
    DATASET_TITLES,
    completed,
    epochs_of,
    final_accuracy,
    networks,
    select,
    total_seconds,
)
from resnet_cifar.report.variants import Run, label_variants


class Spread(NamedTuple):
    """Mean and sample standard deviation of some values. The deviation of one value is nan."""

    mean: float
    deviation: float
    n: int


class PairedDifference(NamedTuple):
    """Mean difference over pairs, and half of its 95 % interval (Student's t)."""

    mean: float
    half_interval: float
    pairs: int
    deviation: float  # Sample deviation of the single differences.


class Curve(NamedTuple):
    """Accuracy (%) over epochs: mean and deviation over the seeds."""

    label: str
    epochs: list[float]
    mean: list[float]
    deviation: list[float]
    seeds: int


class TimedAccuracy(NamedTuple):
    """Accuracy (%) of one network after some minutes of training and evaluation."""

    network: str
    minutes: float
    accuracy: float
    deviation: float


class Series(NamedTuple):
    """Networks trained by one recipe, or reported by one peer, on one device."""

    name: str
    ours: bool
    points: list[TimedAccuracy]


def spread(values: list[float]) -> Spread:
    """Return the mean and the sample standard deviation.

    `deviation = sqrt(sum((value - mean)^2) / (n - 1))`
    """
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.mean(values), deviation, len(values))


def paired_difference(runs: list[Run], baseline: list[Run]) -> PairedDifference | None:
    """Compare the test accuracy of two variants over the seeds that both have.

    The interval is `mean ± t(0.975, pairs - 1) * deviation / sqrt(pairs)`.

    Args:
      runs: of one network on one data set, by one variant.
      baseline: of the same network and data set, by another variant.

    Returns:
      None if fewer than two seeds are in both.
    """
    ours, theirs = ({run["seed"]: final_accuracy(run) for run in side} for side in (runs, baseline))
    gains = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if len(gains) < 2:
        return None
    from scipy.stats import t  # Slow to import.

    mean, deviation, pairs = spread(gains)
    quantile = float(t.ppf(0.975, pairs - 1))
    return PairedDifference(mean, quantile * deviation / math.sqrt(pairs), pairs, deviation)


def learning_curves(groups: dict[str, list[Run]]) -> dict[str, list[Curve]]:
    """Return the curves of every network and variant, by data set.

    They are those of the validation split if all runs have one, else of the test set.
    """
    runs = [run for own in groups.values() for run in completed(own)]
    split = "validation" if all("validation" in run["epochs"] for run in runs) else "test"
    panels: dict[str, list[Curve]] = {}
    short = label_variants(groups).short
    for name, runs in groups.items():
        for dataset, depth in networks(completed(runs)):
            label = f"ResNet{depth}" + f", {short[name]}" * (len(groups) > 1)
            curve = mean_curve(label, select(runs, dataset, depth), split)
            title = DATASET_TITLES.get(dataset, dataset) + ", validation" * (split != "test")
            panels.setdefault(title, []).append(curve)
    return panels


def mean_curve(label: str, runs: list[Run], split: str) -> Curve:
    """Average the accuracy of several seeds, at the epochs that all of them have."""
    rows = [epochs_of(run, split) for run in runs]
    seeds = [dict(zip(row["epoch"], row["accuracy"], strict=True)) for row in rows]
    epochs = sorted(set.intersection(*map(set, seeds)))
    spreads = [spread([100 * seed[epoch] for seed in seeds]) for epoch in epochs]
    deviations = [zero_if_nan(point.deviation) for point in spreads]
    return Curve(label, epochs, [point.mean for point in spreads], deviations, len(seeds))


def accuracy_against_time(
    by_recipe: dict[str, list[Run]], peers: list[dict[str, Any]]
) -> dict[str, list[Series]]:
    """Return a series for each recipe, device and peer, by each data set that has runs."""
    panels = {}
    for dataset, title in DATASET_TITLES.items():
        ours = [
            Series(f"{recipe}, {device}", True, timed_points(runs, dataset, device))
            for recipe, runs in by_recipe.items()
            for device in sorted({run["device"] for run in completed(runs)})
        ]
        theirs = [
            Series(f"{peer['name']}, {peer['device']}", False, peer_points(peer))
            for peer in peers
            if peer["dataset"] == dataset and "minutes" in peer
        ]
        if any(series.points for series in ours):
            panels[title] = [series for series in (*ours, *theirs) if series.points]
    return panels


def timed_points(runs: list[Run], dataset: str, device: str) -> list[TimedAccuracy]:
    points = []
    for depth in CARD_DEPTHS:
        own = [run for run in select(runs, dataset, depth) if run["device"] == device]
        if own:
            minutes = statistics.mean(map(total_seconds, own)) / 60
            mean, deviation, _ = spread([100 * final_accuracy(run) for run in own])
            points.append(TimedAccuracy(str(depth), minutes, mean, zero_if_nan(deviation)))
    return points


def peer_points(peer: dict[str, Any]) -> list[TimedAccuracy]:
    return [
        TimedAccuracy(depth, minutes, peer["accuracy"][depth], 0.0)
        for depth, minutes in peer["minutes"].items()
    ]


def zero_if_nan(value: float) -> float:
    return 0.0 if math.isnan(value) else value
