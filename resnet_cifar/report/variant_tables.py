"""The tables of a grid of runs, as lines of Markdown: its variants, the best, and their gains."""

import statistics

from resnet_cifar.report.pages import markdown_table, wrap
from resnet_cifar.report.ranking import (
    best_by_validation,
    gains,
    have_one_reference,
    mean_validation,
    ranked,
    validation_accuracy,
)
from resnet_cifar.report.runs import completed, networks, select, total_seconds
from resnet_cifar.report.tables import (
    NO_RUN,
    accuracy_cell,
    difference_cell,
    has_averages,
    more_seeds_cell,
    without_averaging,
)
from resnet_cifar.report.variants import BASELINE, Run, label_variants


def variants_table(groups: dict[str, list[Run]]) -> list[str]:
    """Return accuracy and time of every network and variant, and what one gains over another."""
    shared, short = label_variants(groups)
    everything = [run for runs in groups.values() for run in runs]
    validated = any(validation_accuracy(run) is not None for run in completed(everything))
    averaging = has_averages(everything)
    rows = []
    for name in sorted(groups, key=lambda name: short[name] != BASELINE):  # The baseline first.
        runs = groups[name]
        for dataset, depth in networks(runs):
            own = select(runs, dataset, depth)
            seconds = f"{statistics.mean(map(total_seconds, own)):,.0f}" if own else ""
            score = mean_validation(own)
            chosen_by = [f"{100 * score:.2f}" if score is not None else NO_RUN] * validated
            network = [dataset, f"ResNet{depth}"]
            test = accuracy_cell(runs, dataset, depth)
            plain = without_averaging if has_averages(runs) else None
            raw = [accuracy_cell(runs, dataset, depth, plain) if plain else ""] * averaging
            rows.append([short[name], *network, *chosen_by, test, *raw, seconds])
    lines = [*wrap(f"All runs: {shared}."), ""] if shared else []
    heading = ["variant", "data", "network", *["validation accuracy (%)"] * validated]
    heading += ["test accuracy (%), seeds", *["without averaging"] * averaging]
    lines += markdown_table([*heading, "seconds of training and evaluation"], rows)
    if averaging:
        text = (
            "With `ema_decay`, the accuracies are of the averaged weights; `without averaging` is "
            "the test accuracy of the weights themselves."
        )
        lines += ["", *wrap(text)]
    return [*lines, *best_variants(groups, short), *gains_table(groups, short)]


def best_variants(groups: dict[str, list[Run]], short: dict[str, str]) -> list[str]:
    """Name the best variant of each network by its validation split, or say that there is none."""
    if len(groups) < 2:
        return []
    lines = []
    for dataset, depth in networks([run for runs in groups.values() for run in runs]):
        if best := best_by_validation(groups, dataset, depth):
            cell = accuracy_cell(groups[best], dataset, depth)
            text = f"Best of ResNet{depth} on {dataset} by validation: {short[best]}; test {cell}."
            lines += ["", *wrap(text)]
    if not lines:
        text = (
            "Not ranked, for lack of a validation split on all runs: "
            "`train_split=train[:45000]`, `validation_split=train[45000:]`."
        )
        lines = ["", *wrap(text)]
    return lines


def gains_table(groups: dict[str, list[Run]], short: dict[str, str]) -> list[str]:
    """Return what one variant gains over another, and how many more seeds would show 0.2 points."""
    found = gains(groups)
    if not found:
        return []
    one = have_one_reference(found)
    rows = []
    for gain in ranked(found) if one else found:
        pair = short[gain.name] if one else f"{short[gain.name]} over {short[gain.over]}"
        cells = [difference_cell(gain.difference), more_seeds_cell(gain.difference)]
        rows.append([pair, gain.dataset, f"ResNet{gain.depth}", *cells])
    what = f"gain over {short[found[0].over]}" if one else "gain"
    heading = [what, "data", "network", "points, 95 % interval, pairs", "more seeds for ± 0.2"]
    return ["", *markdown_table(heading, rows)]
