"""Variants: the name of what a run was trained with, and what tells several of them apart.

A variant is a config without its data set, depth and seed. Its name is the nearest recipe and the
fields that differ from it, as in `card with batch_size=128, num_epochs=4`.
"""

import dataclasses
import json
from collections.abc import Collection
from typing import Any, NamedTuple

from resnet_cifar.recipes import RECIPES, make_config
from resnet_cifar.workdir import CHANGEABLE

Run = dict[str, Any]  # A compacted summary.json: see `runs.compact`.
KEY = ("dataset", "depth", "seed")  # The fields in which runs of one variant differ.
SPLITS = ("train_split", "validation_split")  # They tell no recipe from another.
TOGETHER = 2  # A baseline's most fields that a variant changes, as mixup and its last epochs.
BASELINE = "baseline"  # The label of the variant that the others are compared with.


class Labels(NamedTuple):
    """Several variants in words: what all share, said once, and a short label for each name."""

    shared: str
    short: dict[str, str]


def run_key(run: Run) -> tuple:
    """Return data set, depth and seed."""
    return tuple(run[field] for field in KEY)


def overrides(run: Run, recipe: str) -> dict[str, Any]:
    """Return the fields of a run that differ from a recipe, with the run's values."""
    config = make_config(recipe, **dict(zip(KEY, run_key(run), strict=True)))
    expected = json.loads(json.dumps(dataclasses.asdict(config)))  # Tuples become lists.
    return {
        field: value
        for field, value in run["config"].items()
        if field not in CHANGEABLE and (field not in expected or value != expected[field])
    }


def nearest_recipe(run: Run) -> str:
    """Return the recipe with the fewest overrides, whatever the splits."""
    return min(RECIPES, key=lambda recipe: len(without(overrides(run, recipe), SPLITS)))


def variant_name(run: Run) -> str:
    """Name the variant of a run. Only a run trained exactly by a recipe has the recipe's name."""
    recipe = nearest_recipe(run)
    return with_fields(recipe, overrides(run, recipe))


def with_fields(recipe: str, fields: dict[str, Any]) -> str:
    text = ", ".join(f"{field}={format_value(value)}" for field, value in fields.items())
    return " with ".join(filter(None, [recipe, text]))


def format_value(value: Any) -> str:
    """Return a value as a flag takes it, but `none` if empty; equal numbers look the same."""
    if isinstance(value, list | tuple):
        return ",".join(map(format_value, value)) or "none"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) or "none"


def group_by_variant(runs: list[Run]) -> dict[str, list[Run]]:
    """Group runs by the name of their variant, each group sorted by data set, depth and seed."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=run_key):
        groups.setdefault(variant_name(run), []).append(run)
    return dict(sorted(groups.items()))


def label_variants(groups: dict[str, list[Run]]) -> Labels:
    """Separate what all variants share from what tells them apart.

    Variants that each change little of their baseline are labelled by it, those of several
    recipes by the recipe and its overrides, others by the fields that differ.

    Example:
      `card` and `card with weight_decay=0.001` share `recipe card`; their labels are
      `weight_decay=0.0001` and `weight_decay=0.001`.
    """
    first = {name: runs[0] for name, runs in groups.items()}
    recipes = {name: nearest_recipe(run) for name, run in first.items()}
    varying = varying_fields(list(first.values()))
    center = baseline(groups)
    if len(set(recipes.values())) > 1 and len(varying) > 2 and not center:
        return label_by_recipe(first, varying)
    if not first:
        return Labels("", {})
    name, run = next(iter(first.items()))
    if center:
        run = first[center]
        shared = with_fields(f"recipe {recipes[center]}", overrides(run, recipes[center]))
        values = {name: with_fields("", changed(run, other)) for name, other in first.items()}
        return Labels(
            f"{shared}, changed as each row says",
            {name: value or BASELINE for name, value in values.items()},
        )
    shared = without(overrides(run, recipes[name]), varying)
    values = {name: with_fields("", chosen(run["config"], varying)) for name, run in first.items()}
    return Labels(
        with_fields(f"recipe {recipes[name]}", shared),
        {name: values[name] or recipe for name, recipe in recipes.items()},
    )


def label_by_recipe(first: dict[str, Run], varying: list[str]) -> Labels:
    """Label each variant by the recipe from which it differs in the fewest varying fields."""
    shared, short = {}, {}
    for name, run in first.items():
        changes = {recipe: overrides(run, recipe) for recipe in RECIPES}
        own = {recipe: chosen(fields, varying) for recipe, fields in changes.items()}
        nearest = min(RECIPES, key=lambda recipe: len(own[recipe]))
        short[name] = with_fields(nearest, own[nearest])
        shared |= without(changes[nearest], varying)
    return Labels(with_fields("", shared), short)


def baseline(groups: dict[str, list[Run]]) -> str | None:
    """Return the variant of which each other one changes one field, or two that go together.

    None if there is no such variant, if there are several, as in a full grid, or if fewer than
    three fields vary.
    """
    first = {name: runs[0] for name, runs in groups.items()}
    if len(varying_fields(list(first.values()))) < 3:
        return None
    changes = {
        name: [len(changed(run, other)) for other in first.values()] for name, run in first.items()
    }
    total = {name: sum(counts) for name, counts in changes.items() if max(counts) <= TOGETHER}
    nearest = [name for name in total if total[name] == min(total.values())]
    return nearest[0] if len(nearest) == 1 else None


def changed(run: Run, other: Run) -> dict[str, Any]:
    """Return the fields in which two runs differ, with the values of the other."""
    return chosen(other["config"], varying_fields([run, other]))


def varying_fields(runs: list[Run]) -> list[str]:
    """Return the fields of the config in which some of the runs differ."""
    fields = dict.fromkeys(field for run in runs for field in run["config"])
    values = {field: {format_value(run["config"].get(field)) for run in runs} for field in fields}
    return [field for field in fields if field not in CHANGEABLE and len(values[field]) > 1]


def chosen(config: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    return {field: value for field, value in config.items() if field in fields}


def without(config: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    return {field: value for field, value in config.items() if field not in fields}
