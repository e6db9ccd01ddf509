"""What each variant of a sweep gains over one reference: a point and its interval, drawn."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from resnet_cifar.report.plots import COLORS, REPRODUCIBLE, decorate
from resnet_cifar.report.ranking import ALL_PAIRS, Gain, gains
from resnet_cifar.report.variants import Labels, Run, label_variants


def draw_gains(groups: dict[str, list[Run]], path: Path) -> bool:
    """Draw the gains as a PNG if many variants have one reference, and tell whether they do."""
    panels: dict[str, list[Gain]] = {}
    for gain in gains(groups):
        panels.setdefault(f"ResNet{gain.depth} on {gain.dataset}", []).append(gain)
    if not panels or any(not have_one_reference(own) for own in panels.values()):
        return False
    figure = gains_figure(panels, label_variants(groups))
    figure.savefig(path, dpi=120, metadata=REPRODUCIBLE)
    return True


def have_one_reference(own: list[Gain]) -> bool:
    return len(own) >= ALL_PAIRS and len({gain.over for gain in own}) == 1


def gains_figure(panels: Mapping[str, list[Gain]], labels: Labels) -> Figure:
    """Draw a panel for each network, its variants from the highest gain to the lowest."""
    rows = max(map(len, panels.values()))
    figure = Figure(figsize=(8 * len(panels), 1.8 + 0.36 * rows), layout="constrained")
    for axes, (title, own) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        ranked = sorted(own, key=lambda gain: gain.difference.mean)
        means = [100 * gain.difference.mean for gain in ranked]
        halves = [100 * gain.difference.half_interval for gain in ranked]
        axes.axvline(0, color="#666666", linewidth=1)
        axes.errorbar(means, range(len(own)), xerr=halves, fmt="o", capsize=3, color=COLORS[0])
        names = [textwrap.fill(labels.short[gain.name], 44) for gain in ranked]
        axes.set_yticks(range(len(own)), names, fontsize=8)
        unit = f"points of test accuracy over {labels.short[own[0].over]}, 95 % interval"
        decorate(axes, title, textwrap.fill(unit, 64))
    return figure
