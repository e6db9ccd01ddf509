"""Variants compared: the best by validation, paired gains, seeds needed.

No variant is ever chosen by the test set.
"""

import itertools
import math
import statistics
from typing import NamedTuple

from resnet_cifar.report.runs import epochs_of, networks, select
from resnet_cifar.report.statistics import PairedDifference, paired_difference
from resnet_cifar.report.variants import Run, baseline

VISIBLE_DIFFERENCE = 0.002  # 0.2 points of accuracy.
MOST_SEEDS = 1000
ALL_PAIRS = 4  # So many variants are all compared with each other.


class Gain(NamedTuple):
    """What one variant gains over another on one network."""

    name: str
    over: str
    dataset: str
    depth: int
    difference: PairedDifference


def validation_accuracy(run: Run) -> float | None:
    """Return the last validation accuracy of a run; None without a validation split."""
    accuracies = epochs_of(run, "validation")["accuracy"]
    return accuracies[-1] if accuracies else None


def mean_validation(runs: list[Run]) -> float | None:
    """Return the mean validation accuracy; None if any run has none, or there are no runs."""
    values = [validation_accuracy(run) for run in runs]
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known and len(known) == len(values) else None


def best_by_validation(groups: dict[str, list[Run]], dataset: str, depth: int) -> str | None:
    """Return the variant of the highest mean validation accuracy on one network.

    None if fewer than two variants were trained on it, or one of them has no validation split.
    """
    own = {name: select(runs, dataset, depth) for name, runs in groups.items()}
    scores = {name: mean_validation(runs) for name, runs in own.items() if runs}
    known = {name: score for name, score in scores.items() if score is not None}
    if len(scores) < 2 or len(known) < len(scores):
        return None
    return max(known, key=lambda name: known[name])


def gains(groups: dict[str, list[Run]]) -> list[Gain]:
    """Compare variants seed by seed: all pairs of a few, else each with a reference.

    The reference is their baseline. Without one it is the best by validation, and without a
    validation split the first.
    """
    found = []
    for dataset, depth in networks(list(itertools.chain.from_iterable(groups.values()))):
        own = {name: select(runs, dataset, depth) for name, runs in groups.items()}
        names = [name for name, runs in own.items() if runs]
        pairs = [(name, over) for i, name in enumerate(names) for over in names[:i]]
        if len(names) > ALL_PAIRS:
            reference = (
                baseline({name: own[name] for name in names})
                or best_by_validation(groups, dataset, depth)
                or names[0]
            )
            pairs = [(name, reference) for name in names if name != reference]
        for name, over in pairs:
            if difference := paired_difference(own[name], own[over]):
                found.append(Gain(name, over, dataset, depth, difference))
    return found


def have_one_reference(found: list[Gain]) -> bool:
    """Tell whether several variants are compared with the same one."""
    return len(found) > 1 and len({gain.over for gain in found}) == 1


def ranked(found: list[Gain]) -> list[Gain]:
    """Sort gains by network, then from the highest to the lowest."""
    return sorted(found, key=lambda gain: (gain.dataset, gain.depth, -gain.difference.mean))


def seeds_needed(deviation: float, difference: float = VISIBLE_DIFFERENCE) -> int | None:
    """Return how many pairs make the 95 % interval of their mean no wider than ± `difference`.

    It is the smallest n with `t(0.975, n - 1) * deviation / sqrt(n) <= difference`, for a deviation
    of single pairs as large as so far. None if that is more than a thousand.

    Example:
      >>> seeds_needed(deviation=0.003)
      12
    """
    from scipy.stats import t  # Slow to import.

    for n in range(2, MOST_SEEDS + 1):
        if float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n) <= difference:
            return n
    return None
