"""The report: from finished runs to files of results, pictures and pages.

Finished runs below the workdir are printed with mean and sample standard deviation. Runs trained
exactly by a recipe are added to results/RECIPE.json. With an output, all runs go into that file
instead. Then the pictures beside the files of results, and the tables between the markers in
README.md and docs/, are regenerated.
"""

from functools import cache, partial
from pathlib import Path

from resnet_cifar.errors import UserError
from resnet_cifar.recipes import RECIPES
from resnet_cifar.report import tables
from resnet_cifar.report.gain_plots import draw_gains
from resnet_cifar.report.heat_maps import heat_maps, plot_heat_maps
from resnet_cifar.report.pages import fill, wrap
from resnet_cifar.report.plots import plot_accuracy_against_time, plot_learning
from resnet_cifar.report.runs import (
    CARD_DEPTHS,
    DATASET_TITLES,
    FILE_START,
    add_runs,
    collect_runs,
    completed,
    read_peers,
    read_runs,
    read_weights_scores,
    write_runs,
)
from resnet_cifar.report.statistics import accuracy_against_time, learning_curves
from resnet_cifar.report.variant_tables import variants_table
from resnet_cifar.report.variants import Run, group_by_variant, label_variants, variant_name
from resnet_cifar.workdir import write_atomically

WORKDIR = "runs"  # The default, in the repository.
# Short runs, never in the model card.
EXPERIMENTS = ("sweep_cpu", "smoothing", "ingredients", "short_recipes", "optimizers")
PAGES = ("README.md", "docs/model_card.md", "docs/sweep.md", "docs/experiments.md")


def report(workdir: Path, *, output: Path | None = None, root: Path | None = None) -> None:
    """Report the finished runs of a workdir, and update files of results, pictures and pages.

    Args:
      workdir: holds the folders of the runs, at any depth.
      output: a `.json` file for all runs, whatever their config. Without it, runs trained by a
        recipe are added to the files of the repository.
      root: the repository; by default the nearest folder from the workdir upwards whose README.md
        has the marked table. With an output it may be missing.

    Raises:
      UserError: an argument is wrong, a run can't be read, or a file can't be written.
    """
    workdir = workdir.expanduser()
    root = find_root(workdir, root, needed=output is None)
    check_arguments(workdir, output, root)
    runs, unfinished = collect_runs(workdir)
    groups = group_by_variant(runs)
    print_summary(workdir, groups, unfinished)
    if output and not runs:
        raise UserError(f"no run below {workdir} has finished: nothing to write to {output}")
    try:
        if output:
            write_runs(output, runs)
            draw_learning(groups, output.with_suffix(".png"))
            draw_heat_maps(groups, output.with_name(f"{output.stem}_heat_map.png"))
            draw_gains(groups, output.with_name(f"{output.stem}_gains.png"))
        elif root:
            add_to_recipes(groups, root / "results")
        for path in publish(root) if root else ():
            print(f"wrote {path}")
    except OSError as error:
        raise UserError(f"the report can't be written: {error}") from error


def find_root(workdir: Path, root: Path | None, *, needed: bool = True) -> Path | None:
    """Return the repository: the given one, else the nearest from the workdir upwards."""
    if root and not is_root(root := root.expanduser()):
        raise UserError(f"--root={root} must be a clone of the repository, with its marked README")
    folder = workdir.absolute()
    found = root or next(filter(is_root, (folder, *folder.parents)), None)
    if needed and not found:
        if not workdir.is_dir():
            raise no_folder(workdir)
        raise UserError(
            f"the workdir {workdir} is in no clone of the repository: name one with --root, "
            "or a file for all runs with --output"
        )
    return found


def is_root(folder: Path) -> bool:
    readme = folder / "README.md"
    return readme.is_file() and "<!-- card: begin -->\n" in readme.read_text()


def check_arguments(workdir: Path, output: Path | None, root: Path | None) -> None:
    # A fresh clone has no runs, but its pages can be made again.
    default = root and workdir.absolute() == (root / WORKDIR).absolute() and not output
    if not (workdir.is_dir() or default):
        raise no_folder(workdir)
    if output and (output.suffix != ".json" or output.stem in RECIPES):
        raise UserError(
            f"--output={output} must end in .json and must not have the name of a recipe, "
            "whose file takes only its own runs"
        )
    if output and output.exists() and not output.read_text().startswith(FILE_START):
        raise UserError(f"--output={output} exists and is not a file of runs: choose another name")


def no_folder(workdir: Path) -> UserError:
    return UserError(f"--workdir={workdir} is not a folder: give the --workdir of a sweep")


def print_summary(workdir: Path, groups: dict[str, list[Run]], unfinished: list[Path]) -> None:
    if groups:
        count = sum(map(len, groups.values()))
        lines = [f"{count} finished below {workdir}", "", *variants_table(groups)]
    else:
        lines = [f"no run below {workdir} has finished"]
    if unfinished:
        lines += ["", f"unfinished and left out: {', '.join(map(str, unfinished))}"]
    print("\n".join(lines))


def add_to_recipes(groups: dict[str, list[Run]], folder: Path) -> None:
    """Add the runs of the model card to the files of their recipes, and name the others."""
    for name, runs in groups.items():
        own = [run for run in runs if name in RECIPES and in_card(run)]
        if own:
            path = folder / f"{name}.json"
            if any(variant_name(run) != name for run in read_runs(path)):
                raise UserError(
                    f"{path} has runs that do not follow the recipe {name} as it is now: "
                    "move the file away"
                )
            add_runs(path, own)
        if len(own) < len(runs):
            print(f"\nnot in the model card: {name} ({len(runs) - len(own)})")


def in_card(run: Run) -> bool:
    return run["dataset"] in DATASET_TITLES and run["depth"] in CARD_DEPTHS


def publish(root: Path) -> list[Path]:
    """Update pictures and pages from the files of results; return the changed ones, below root."""
    results = root / "results"
    pictures = {path: path.read_bytes() for path in results.glob("*.png")}
    drawn = draw_pictures(results)
    changed = [path for path in drawn if path.read_bytes() != pictures.get(path)]
    for name in PAGES:
        page = root / name
        if page.exists() and (text := fill(page, page_sections(root, name))) != page.read_text():
            write_atomically(page, text)
            changed.append(page)
    return [path.relative_to(root) for path in changed]


def page_sections(root: Path, name: str) -> dict[str, list[str]]:
    """Return the sections for one of the `PAGES`, whose links begin at that page."""
    load = cache(lambda file: read_runs(root / "results" / f"{file}.json"))
    peers = read_peers(root / "results")
    weights = read_weights_scores(root / "results")
    up = "../" * name.count("/")
    experiments = {
        name: [*variants_table(group_by_variant(load(name))), "", *origin]
        for name in EXPERIMENTS
        if (origin := tables.origin(load, [name], up))
    }
    return {
        "card": tables.family_table(load, ["card"], up, peers, weights),
        "family": tables.family_table(load, tables.planned_recipes(load), up, weights=weights),
        "comparison": tables.comparison_table(load),
        "peers": tables.peers_table(load, peers, up),
        "recipes": tables.recipes_table(),
        "pictures": picture_links(load, up),
        **experiments,
    }


def picture_links(load: tables.Load, up: str) -> list[str]:
    names = [recipe for recipe in RECIPES if completed(load(recipe))]
    if not names:
        return wrap("There are no pictures yet: no recipe has been trained.")
    captions = {recipe: f"Test accuracy over epochs, recipe {recipe}" for recipe in names}
    captions["accuracy_against_time"] = "Test accuracy against time, with the peers"
    return [f"![{caption}]({up}results/{name}.png)\n" for name, caption in captions.items()]


def draw_pictures(results: Path) -> list[Path]:
    """Draw a picture for each file that has completed runs, and one of accuracy against time."""
    load = partial(read_runs)
    by_name = {name: load(results / f"{name}.json") for name in (*RECIPES, *EXPERIMENTS)}
    drawn = []
    for name, runs in by_name.items():
        groups = group_by_variant(runs)
        if draw_learning(groups, results / f"{name}.png"):
            drawn.append(results / f"{name}.png")
        if name in EXPERIMENTS and draw_heat_maps(groups, results / f"{name}_heat_map.png"):
            drawn.append(results / f"{name}_heat_map.png")
        if name in EXPERIMENTS and draw_gains(groups, results / f"{name}_gains.png"):
            drawn.append(results / f"{name}_gains.png")
    by_recipe = {recipe: by_name[recipe] for recipe in RECIPES if completed(by_name[recipe])}
    if by_recipe:
        path = results / "accuracy_against_time.png"
        plot_accuracy_against_time(accuracy_against_time(by_recipe, read_peers(results)), path)
        drawn.append(path)
    return drawn


def draw_heat_maps(groups: dict[str, list[Run]], path: Path) -> bool:
    """Draw a heat map if the runs differ in two fields, and tell whether they do."""
    maps = heat_maps(groups)
    if maps:
        plot_heat_maps(maps, path)
    return bool(maps)


def draw_learning(groups: dict[str, list[Run]], path: Path) -> bool:
    """Draw the learning curves if a variant was scored more than once, and tell whether one was."""
    panels = learning_curves(groups)
    if all(len(curve.epochs) < 2 for curves in panels.values() for curve in curves):
        return False
    shared = label_variants(groups).shared
    plot_learning(panels, f"All runs: {shared}" if shared else "", path)
    return True
