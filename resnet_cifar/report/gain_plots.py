"""What each variant of a sweep gains over one reference: a point and its interval, drawn."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from resnet_cifar.report.plots import COLORS, REPRODUCIBLE, decorate
from resnet_cifar.report.ranking import Gain, gains, have_one_reference, ranked
from resnet_cifar.report.runs import DATASET_TITLES
from resnet_cifar.report.variants import Labels, Run, label_variants


def draw_gains(groups: dict[str, list[Run]], path: Path) -> bool:
    """Draw the gains as a PNG if several variants have one reference, and tell whether they do."""
    panels: dict[str, list[Gain]] = {}
    for gain in ranked(gains(groups)):
        title = f"ResNet{gain.depth} on {DATASET_TITLES.get(gain.dataset, gain.dataset)}"
        panels.setdefault(title, []).append(gain)
    if not panels or not all(map(have_one_reference, panels.values())):
        return False
    figure = gains_figure(panels, label_variants(groups))
    figure.savefig(path, dpi=120, metadata=REPRODUCIBLE)
    return True


def gains_figure(panels: Mapping[str, list[Gain]], labels: Labels) -> Figure:
    """Draw a panel for each network, one below the other, with the first gain at its top."""
    sizes = [len(own) for own in panels.values()]
    height = sum(1.4 + 0.36 * size for size in sizes)
    figure = Figure(figsize=(8, height), layout="constrained")
    rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (title, own) in zip(rows, panels.items(), strict=True):
        means = [100 * gain.difference.mean for gain in own]
        halves = [100 * gain.difference.half_interval for gain in own]
        axes.axvline(0, color="#666666", linewidth=1)
        axes.errorbar(means, range(len(own)), xerr=halves, fmt="o", capsize=3, color=COLORS[0])
        names = [f"{labels.short[gain.name]} (n={gain.difference.pairs})" for gain in own]
        axes.set_yticks(range(len(own)), [textwrap.fill(name, 44) for name in names], fontsize=8)
        axes.invert_yaxis()
        unit = f"points of test accuracy over {labels.short[own[0].over]}, 95 % interval"
        decorate(axes, title, textwrap.fill(unit, 64))
    return figure
