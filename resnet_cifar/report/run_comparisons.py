"""Groups of finished runs beside each other: what differs, accuracies, paired differences."""

from pathlib import Path

from resnet_cifar.errors import UserError
from resnet_cifar.report.pages import markdown_table, wrap
from resnet_cifar.report.ranking import mean_validation
from resnet_cifar.report.runs import collect_runs, completed, networks
from resnet_cifar.report.statistics import paired_difference
from resnet_cifar.report.tables import accuracy_cell, difference_cell, more_seeds_cell
from resnet_cifar.report.variants import Run, format_value, varying_fields


def read_groups(paths: list[Path]) -> dict[str, list[Run]]:
    """Return the finished runs below each path.

    Raises:
      UserError: there are fewer than two paths, or one has no finished run.
    """
    if len(set(paths)) < max(2, len(paths)):
        raise UserError("give two or more different folders of runs to compare")
    groups = {}
    for path in paths:
        runs = completed(collect_runs(path)[0]) if path.is_dir() else []
        if not runs:
            raise UserError(f"{path} has no finished run: give the --workdir of a run or a sweep")
        groups[str(path)] = runs
    datasets = sorted({run["dataset"] for runs in groups.values() for run in runs})
    if len(datasets) > 1:
        raise UserError(f"the runs are of {', '.join(datasets)}: compare runs on one data set")
    return groups


def comparison(groups: dict[str, list[Run]]) -> list[str]:
    """Return the lines of a comparison: one table of groups, one of differences."""
    runs = [run for own in groups.values() for run in own]
    fields = varying_fields([{**run, "config": whole(run)} for run in runs])
    rows = []
    for name, runs in groups.items():
        for dataset, depth in networks(runs):
            own = [run for run in runs if (run["dataset"], run["depth"]) == (dataset, depth)]
            validation = mean_validation(own)
            score = "-" if validation is None else f"{100 * validation:.2f}"
            cells = [field_values(own, field) for field in fields]
            rows.append([name, *cells, score, accuracy_cell(runs, dataset, depth)])
    heading = ["runs", *fields, "validation accuracy (%)", "test accuracy (%), seeds"]
    return [*markdown_table(heading, rows), *differences_table(groups)]


def whole(run: Run) -> dict:
    return {**run["config"], "dataset": run["dataset"], "depth": run["depth"]}


def field_values(runs: list[Run], field: str) -> str:
    """Return the value of a field in some runs, or all its values joined by "or"."""
    values = dict.fromkeys(format_value(whole(run).get(field)) for run in runs)
    return " or ".join(values)


def differences_table(groups: dict[str, list[Run]]) -> list[str]:
    """Return a table of the differences to the first group, over pairs of equal seeds."""
    (first, baseline), *others = groups.items()
    rows, single = [], []
    for name, runs in others:
        difference = paired_difference(*(by_seed(side) for side in (runs, baseline)))
        if difference is None:
            single.append(name)
            continue
        cells = [difference_cell(difference), more_seeds_cell(difference)]
        rows.append([f"{name} over {first}", *cells])
    heading = ["gain", "points, 95 % interval, pairs", "more seeds for ± 0.2"]
    lines = ["", *markdown_table(heading, rows)] if rows else []
    for name in single:
        text = (
            f"No interval for {name} over {first}: that needs two or more seeds that both have, "
            "one run of each."
        )
        lines += ["", *wrap(text)]
    return lines


def by_seed(runs: list[Run]) -> list[Run]:
    """Return the runs if each has another seed, else none: there would be no pairs."""
    seeds = [run["seed"] for run in runs]
    return runs if len(set(seeds)) == len(seeds) else []
