"""Networks compared with the first one: on the same images, and over seeds."""

import json
from collections.abc import Sequence
from typing import Any

from resnet_cifar.evaluation import mcnemar
from resnet_cifar.report.evaluations import Comparison, Result
from resnet_cifar.report.statistics import PairedDifference, paired_difference, spread
from resnet_cifar.report.variants import KEY, Run, variant_name


def compare_networks(configs: Sequence[dict[str, Any]], results: Sequence[Result]) -> Comparison:
    """Compare several networks.

    Args:
      configs: of each network; those that do not say data set, depth and seed belong to no variant.
      results: of each network on the same images.
    """
    first, *others = [(result.name, result.scores.right) for result in results]
    tests = [(first[0], name, mcnemar(first[1], right)) for name, right in others]
    accuracies = [result.scores.accuracy for result in results]
    return Comparison(spread(accuracies), tests, over_seeds(configs, accuracies))


def over_seeds(
    configs: Sequence[dict[str, Any]], accuracies: Sequence[float]
) -> list[tuple[str, str, PairedDifference]]:
    """Compare each variant with the first over the seeds that both have, if at least two."""
    variants: dict[str, list[Run]] = {}
    for config, accuracy in zip(configs, accuracies, strict=True):
        if config.keys() >= set(KEY):
            run = {name: config[name] for name in KEY}
            run |= {"config": json.loads(json.dumps(config)), "test_accuracy": accuracy}
            name = f"ResNet{run['depth']} on {run['dataset']} by {variant_name(run)}"
            variants.setdefault(name, []).append(run)
    (first, baseline), *others = [*variants.items()] or [("", [])]
    differences = [(first, name, paired_difference(runs, baseline)) for name, runs in others]
    return [(first, name, found) for first, name, found in differences if found]
