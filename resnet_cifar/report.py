"""From finished runs to files, tables and pictures.

  python -m resnet_cifar.report
  python -m resnet_cifar.report --workdir=runs/half --output=runs/half/report.json

Gathers the finished runs below the workdir and prints mean and sample standard deviation for each network. Runs that
were made exactly by a recipe go into results/<recipe>.json, beside what earlier reports put there; with --output all
runs, by whatever config, go into that file instead. Then the pictures beside these files, and the tables between the
markers in README.md and docs/, are made again from them.
"""

import math
import statistics
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from absl import app, flags

from resnet_cifar import results, tables
from resnet_cifar.command import command, parse_flags
from resnet_cifar.config import RECIPES
from resnet_cifar.errors import UserError
from resnet_cifar.plots import plot_accuracy_over_time, plot_learning
from resnet_cifar.results import Result, select, spread
from resnet_cifar.stop import Stop
from resnet_cifar.tables import DEPTHS, FILLED, TITLES

REHEARSAL = "sweep_cpu"  # Short runs that show how sweep and report work; no rows of the card.
PAGES = ("README.md", "docs/model_card.md", "docs/sweep.md")


def main(_: list[str]) -> None:
    """Run what the flags say."""
    with command(Stop()):
        workdir, output = Path(flags.FLAGS.workdir).expanduser(), flags.FLAGS.output
        found, unfinished = results.collect(workdir)
        groups = results.by_label(found)
        print("\n".join([f"{len(found)} finished runs below {workdir}", "", *tables.summary(groups)]))
        if unfinished:
            print(f"\nnot finished, and left out: {', '.join(map(str, unfinished))}")
        if output and not found:
            raise UserError(f"there is no finished run below {workdir}: nothing to write to {output}")
        if output:
            results.write(Path(output), [result for group in groups.values() for result in group])
            plot_learning(curves(groups), Path(output).with_suffix(".png"))
        else:
            keep_recipes(groups, Path("results"))
        for path in publish(Path()):
            print(f"wrote {path}")


def keep_recipes(groups: dict[str, list[Result]], folder: Path) -> None:
    """Add the runs that were made exactly by a recipe to its file; say which were not."""
    for name, group in groups.items():
        if name in RECIPES:
            path = folder / f"{name}.json"
            old = [result for result in results.read(path) if results.label(result) == name]
            results.write(path, results.merge(old, group))
        else:
            print(f"\nby no recipe, and so in no file: {name}")


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
        "family": lambda: tables.family(load, up),
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
    names = [recipe for recipe in FILLED if load(recipe)]
    if not names:
        return ["Nothing to draw yet: nothing has been measured."]
    alts = {recipe: f"Test accuracy over epochs by the recipe {recipe}" for recipe in names}
    alts |= {"accuracy_over_time": "Test accuracy against training time, with what others report"}
    return [f"![{alt}]({up}results/{name}.png)\n" for name, alt in alts.items()]


def drawings(folder: Path) -> dict[Path, Callable[[Path], None]]:
    """Return how to draw the pictures for which there are results."""
    files = {name: results.read(folder / f"{name}.json") for name in (*FILLED, REHEARSAL)}
    draw: dict[Path, Callable[[Path], None]] = {
        folder / f"{name}.png": partial(plot_learning, curves(results.by_label(runs)))
        for name, runs in files.items()
        if runs
    }
    if recipes := {recipe: files[recipe] for recipe in FILLED if files[recipe]}:
        panels = times(recipes, results.read_peers(folder))
        draw[folder / "accuracy_over_time.png"] = partial(plot_accuracy_over_time, panels)
    return draw


def curves(groups: dict[str, list[Result]]) -> dict[str, dict[str, list[list[tuple[float, float]]]]]:
    """Return by data set, and by network and recipe, the test accuracy over epochs of each seed."""
    panels = {}
    for name, group in groups.items():
        for dataset, depth in sorted({(result["dataset"], result["depth"]) for result in group}):
            line = f"ResNet{depth}" + f", {name.partition(' with ')[0]}" * (len(groups) > 1)
            rows = [result["epochs"]["test"] for result in select(group, dataset, depth)]
            points = [list(zip(row["epoch"], row["accuracy"], strict=True)) for row in rows]
            panels.setdefault(TITLES.get(dataset, dataset), {})[line] = points
    return panels


def times(files: dict[str, list[Result]], others: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple]]]:
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
                        point = (minutes, mean, 0.0 if math.isnan(deviation) else deviation, str(depth))
                        panel.setdefault(f"ours, {recipe}, {device}", []).append(point)
        for peer in (peer for peer in others if peer["dataset"] == dataset and "minutes" in peer):
            points = [(minutes, peer["accuracy"][depth], 0.0, depth) for depth, minutes in peer["minutes"].items()]
            panel[f"{peer['name']}, {peer['device']}"] = points
    return {title: panel for title, panel in panels.items() if panel}


def define_flags(_: list[str]) -> None:
    """Define the flags of the command line."""
    flags.DEFINE_string("workdir", "runs", "Folder with the folders of the runs.")
    flags.DEFINE_string("output", "", "File for all runs of the workdir, by whatever config.")


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, prepare=define_flags))
