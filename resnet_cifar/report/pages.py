"""From finished runs to files, tables and pictures.

  python -m resnet_cifar.report
  python -m resnet_cifar.report --workdir=runs/half --output=runs/half/report.json

Gathers the finished runs below the workdir and prints mean and sample standard deviation for each network. Runs that
were made exactly by a recipe go into results/<recipe>.json, beside what earlier reports put there; with --output all
runs, by whatever config, go into that file instead. Then the pictures beside these files, and the tables between the
markers in README.md and docs/, are made again from them.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # A Ctrl-C ends it, without a traceback.

import math
import statistics
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from absl import app, flags

from resnet_cifar.cli import command, parse_flags
from resnet_cifar.errors import UserError
from resnet_cifar.recipes import RECIPES
from resnet_cifar.report import runs as results
from resnet_cifar.report import tables
from resnet_cifar.report.plots import plot_accuracy_over_time, plot_learning
from resnet_cifar.report.runs import Result, select, spread
from resnet_cifar.report.tables import DEPTHS, TITLES
from resnet_cifar.stop import Stop

REHEARSAL = "sweep_cpu"  # Short runs that show how sweep and report work; no rows of the card.
WORKDIR = "runs"
PAGES = ("README.md", "docs/model_card.md", "docs/sweep.md")


def main(_: list[str]) -> None:
    """Run what the flags say."""
    with command(Stop()):
        try:
            report(
                Path(flags.FLAGS.workdir).expanduser(),
                Path(flags.FLAGS.output) if flags.FLAGS.output else None,
            )
        except OSError as error:
            raise UserError(f"the report can't be written: {error}") from error


def report(workdir: Path, output: Path | None) -> None:
    """Gather the runs below a workdir, and make the files, pictures and pages again."""
    if output and (output.suffix != ".json" or output.stem in RECIPES):
        raise UserError(
            f"--output={output} must end with .json, and not be the file of a recipe: those take only its runs"
        )
    if output and output.exists() and not output.read_text().startswith(results.BEGIN):
        raise UserError(f"--output={output} is a file of another kind already: choose another name")
    if not (output or Path("results").is_dir()):
        raise UserError(
            "there is no folder results/ here: go to the top of the repository, or give an --output"
        )
    if workdir != Path(WORKDIR) and not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}: give the --workdir of a sweep")
    found, unfinished = results.collect(workdir)
    groups = results.by_label(found)
    if not found:
        print(f"no run below {workdir} has finished")
        if output:
            raise UserError(f"there is nothing to write to {output}")
    else:
        print("\n".join([f"finished below {workdir}: {len(found)}", "", *tables.summary(groups)]))
    if unfinished:
        print(f"\nnot finished, and left out: {', '.join(map(str, unfinished))}")
    if output:
        results.write(output, [result for group in groups.values() for result in group])
        if panels := curves(groups):
            plot_learning(panels, output.with_suffix(".png"))
    else:
        keep_recipes(groups, Path("results"))
    for path in publish(Path()):
        print(f"wrote {path}")


def keep_recipes(groups: dict[str, list[Result]], folder: Path) -> None:
    """Add the runs that fill a cell, made exactly by a recipe, to its file; say which do not."""
    for name, group in groups.items():
        cells = [
            run
            for run in group
            if name in RECIPES and run["dataset"] in TITLES and run["depth"] in DEPTHS
        ]
        if cells:
            path = folder / f"{name}.json"
            if any(results.label(old) != name for old in results.read(path)):
                raise UserError(
                    f"{path} has runs that were not made by the recipe {name} as it is now: move it away"
                )
            results.add(path, cells)
        if len(cells) < len(group):
            print(f"\nno cell of the card: {name} ({len(group) - len(cells)})")


def publish(root: Path) -> list[Path]:
    """Make pictures and pages again from the files of results; return those that changed."""
    changed = []
    for path, draw in drawings(root / "results").items():
        before = path.read_bytes() if path.exists() else b""
        draw(path)
        changed += [path] * (path.read_bytes() != before)
    for page in (root / name for name in PAGES):
        text = page.read_text() if page.exists() else ""
        up = "../" * (len(page.relative_to(root).parts) - 1)
        if (new := update(text, root / "results", up)) != text:
            page.write_text(new)
            changed.append(page)
    return changed


def update(page: str, folder: Path, up: str) -> str:
    """Return a page with its tables made again from a folder of results, to which its links go by way of `up`."""
    load = cache(lambda name: results.read(folder / f"{name}.json"))
    peers = results.read_peers(folder)
    sections: dict[str, Callable[[], list[str]]] = {
        "card": lambda: tables.family(load, ["card"], up),
        "family": lambda: tables.family(load, tables.shown(load), up),
        "comparison": lambda: tables.comparison(load),
        "peers": lambda: tables.peers(load, peers, up),
        "recipes": tables.recipes,
        "pictures": lambda: pictures(load, up),
        REHEARSAL: lambda: [
            *tables.summary(results.by_label(load(REHEARSAL))),
            "",
            *tables.origin(load, [REHEARSAL], up),
        ],
    }
    for name, section in sections.items():
        if f"<!-- {name}: begin -->\n" in page:
            page = tables.between_markers(page, name, "\n".join(section()) + "\n")
    return page


def pictures(load: Callable[[str], list[Result]], up: str) -> list[str]:
    """Return links to the pictures that there are."""
    names = [recipe for recipe in RECIPES if results.finished(load(recipe))]
    if not names:
        return ["Nothing to draw yet: nothing has been measured."]
    alts = {recipe: f"Test accuracy over epochs by the recipe {recipe}" for recipe in names}
    alts |= {"accuracy_over_time": "Test accuracy against training time, with what others report"}
    return [f"![{alt}]({up}results/{name}.png)\n" for name, alt in alts.items()]


def drawings(folder: Path) -> dict[Path, Callable[[Path], None]]:
    """Return how to draw the pictures for which there are results."""
    files = {
        name: results.finished(results.read(folder / f"{name}.json"))
        for name in (*RECIPES, REHEARSAL)
    }
    draw: dict[Path, Callable[[Path], None]] = {
        folder / f"{name}.png": partial(plot_learning, curves(results.by_label(runs)))
        for name, runs in files.items()
        if runs
    }
    if recipes := {recipe: files[recipe] for recipe in RECIPES if files[recipe]}:
        panels = times(recipes, results.read_peers(folder))
        draw[folder / "accuracy_over_time.png"] = partial(plot_accuracy_over_time, panels)
    return draw


def curves(
    groups: dict[str, list[Result]],
) -> dict[str, dict[str, list[list[tuple[float, float]]]]]:
    """Return by data set, and by network and recipe, the test accuracy of each seed over the epochs that all have."""
    panels = {}
    short, _ = results.short_names(groups)
    for name, group in groups.items():
        for dataset, depth in sorted(
            {(run["dataset"], run["depth"]) for run in results.finished(group)}
        ):
            line = f"ResNet{depth}" + f", {short[name]}" * (len(groups) > 1)
            rows = [run["epochs"]["test"] for run in select(group, dataset, depth)]
            seeds = [dict(zip(row["epoch"], row["accuracy"], strict=True)) for row in rows]
            common = sorted(set.intersection(*map(set, seeds)))
            points = [[(epoch, seed[epoch]) for epoch in common] for seed in seeds]
            panels.setdefault(TITLES.get(dataset, dataset), {})[line] = points
    return panels


def times(
    files: dict[str, list[Result]], others: list[dict[str, Any]]
) -> dict[str, dict[str, list[tuple]]]:
    """Return by data set, and by recipe or peer, points (minutes, accuracy, deviation, label)."""
    panels = {}
    for dataset, title in TITLES.items():
        panel = panels.setdefault(title, {})
        for recipe, runs in files.items():
            for device in sorted({run["device"] for run in runs}):
                for depth in DEPTHS:
                    own = [run for run in select(runs, dataset, depth) if run["device"] == device]
                    if own:
                        mean, deviation, _ = spread([100 * run["test_accuracy"] for run in own])
                        minutes = statistics.mean(run["train_seconds"] for run in own) / 60
                        point = (
                            minutes,
                            mean,
                            0.0 if math.isnan(deviation) else deviation,
                            str(depth),
                        )
                        panel.setdefault(f"ours, {recipe}, {device}", []).append(point)
        for peer in (peer for peer in others if peer["dataset"] == dataset and "minutes" in peer):
            points = [
                (minutes, peer["accuracy"][depth], 0.0, depth)
                for depth, minutes in peer["minutes"].items()
            ]
            panel[f"{peer['name']}, {peer['device']}"] = points
    return {title: panel for title, panel in panels.items() if panel}


def define_flags(_: list[str]) -> None:
    """Define the flags of the command line."""
    flags.DEFINE_string("workdir", WORKDIR, "Folder with the folders of the runs.")
    flags.DEFINE_string(
        "output", "", "File (.json) for all runs of the workdir, by whatever config."
    )


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, prepare=define_flags))
