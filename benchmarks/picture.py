"""Draw images per second by depth, ours, a peer's and the floor, from the files of the benchmarks.

python -m benchmarks.picture results/throughput_cpu.json results/torch_cpu.json --output=docs/images/speed_cpu.png
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from absl import app, flags

OUTPUT = flags.DEFINE_string("output", "", "Picture to draw.", required=True)
LABELS = {
    "floor": "floor: unfused convolutions at full memory bandwidth",
    "bare": "bare step",
    "whole": "whole program",
    "plain": "plain linen and optax step",
    "torch bare": "PyTorch, bare step",
    "torch best": "PyTorch, images on the device",
    "torch usual": "PyTorch, DataLoader",
}


def main(argv: list[str]) -> None:
    """Draw a group of bars for each depth."""
    if not argv[1:]:
        raise app.UsageError("name the files of the benchmarks, such as results/throughput_cpu.json")
    results = [json.loads(Path(path).read_text()) for path in argv[1:]]
    series: dict[str, dict[int, float]] = {name: {} for name in LABELS}
    for result in results:
        prefix = "torch " if "torch" in result["versions"] else ""
        for row in result["rows"]:
            for name in LABELS:
                if name.startswith(prefix) and (value := row.get(name.removeprefix(prefix))):
                    series[name][row["depth"]] = value
    series = {name: values for name, values in series.items() if values}
    depths = sorted({depth for values in series.values() for depth in values})
    _, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [depths.index(depth) + (i - (len(series) - 1) / 2) * width for depth in values]
        bars = axes.bar(places, list(values.values()), width, label=LABELS[name], color=f"C{list(LABELS).index(name)}")
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7)
    axes.set_xticks(range(len(depths)), [f"ResNet{depth}" for depth in depths])
    axes.set_ylabel("images per second, training")
    first = results[0]["rows"][0]
    axes.set_title(f"{results[0]['device']}, batch {first['batch_size']:,}, {first['dtype']}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    plt.savefig(OUTPUT.value, dpi=150)


if __name__ == "__main__":
    app.run(main)
