"""Write the tables of docs/speed.md, and draw its pictures, from the files in results/: python -m benchmarks.page."""

import json
import statistics
from pathlib import Path

from resnet_cifar.report.tables import between_markers

ROOT = Path(__file__).parents[1]
# Files of rows for each place: ours, the peer's, and the single convolutions of both.
FILES = {
    "cpu": (["throughput_cpu_hugepages"], ["torch_cpu"], "convolutions_cpu", "torch_cpu"),
    "gpu": (
        ["gpu/throughput_56", "gpu/throughput"],
        ["gpu/torch_56", "gpu/torch_usual"],
        "gpu/convolutions",
        "gpu/torch_convolutions",
    ),
}
VARIANTS = {
    "with huge pages, as above": "throughput_cpu_hugepages",
    "without": "throughput_cpu",
    "batch 1,024": "throughput_cpu_1024",
    "Python 3.12": "throughput_cpu_python312",
}
COLUMNS = {
    "plain": "plain JAX step",
    "bare": "bare step",
    "whole": "whole program",
    "torch_bare": "PyTorch, bare step",
    "torch_best": "PyTorch, images on the device",
    "torch_usual": "PyTorch, DataLoader",
    "roofline": "roofline",
}


def main() -> None:
    """Write the page, and a picture for each place that has been measured."""
    page = ROOT / "docs" / "speed.md"
    page.write_text(update(page.read_text()))
    for place in FILES:
        if rows := speeds(place):
            draw(rows, ROOT / "docs" / "images" / f"speed_{place}.png")


def update(page: str) -> str:
    """Return a page with the tables between its markers."""
    sections = {place: section(place) for place in FILES} | {
        "variants": variants(),
        "startup": startup(),
    }
    for name, text in sections.items():
        page = between_markers(page, name, text)
    return page


def variants() -> str:
    """Return a table of ResNet20 on a CPU under other circumstances."""
    lines = [
        "| ResNet20, images/s | jax | plain JAX step | bare step | bare over plain |",
        "|---|---|---|---|---|",
    ]
    for label, name in VARIANTS.items():
        result = load(name)
        (row,) = (row for row in result["rows"] if row["depth"] == 20)
        file = f"[{label}](../results/{name}.json)"
        rates = f"{row['plain']:,.0f} | {row['bare']:,.0f} | {row['bare'] / row['plain']:.2f}"
        lines.append(f"| {file} | {result['versions']['jax']} | {rates} |")
    return "\n".join(lines) + "\n"


def startup() -> str:
    """Return a sentence on the first step after a cold and after a warm start."""
    result = load("startup_cpu")
    warm = statistics.median(result["warm_seconds"])
    return (
        f"ResNet{result['depth']} on {result['device']} makes its first step {result['cold_seconds']:.0f} s after the "
        f"command with an empty cache, and {warm:.1f} s with a warm one ([file](../results/startup_cpu.json)).\n"
    )


def section(place: str) -> str:
    """Return the tables of a place, or that there are none."""
    rows = speeds(place)
    if not rows:
        return "Not measured yet.\n"
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [
        "| images/s | batch | " + " | ".join(COLUMNS[name] for name in shown),
        "|---" * (2 + len(shown)),
    ]
    ratios = {
        "bare over plain": ("bare", "plain"),
        "whole over bare": ("whole", "bare"),
        "bare over PyTorch's bare": ("bare", "torch_bare"),
        "whole over PyTorch's DataLoader": ("whole", "torch_usual"),
        "bare over the roofline": ("bare", "roofline"),
    }
    ratios = {
        name: pair for name, pair in ratios.items() if any(set(pair) <= row.keys() for row in rows)
    }
    lines[0] += " | " + " | ".join(ratios)
    lines[1] += "|---" * len(ratios)
    for row in rows:
        cells = [f"ResNet{row['depth']}", f"{row['batch_size']:,}"]
        cells += [f"{row[name]:,.0f}" if name in row else "" for name in shown]
        cells += [
            f"{row[a] / row[b]:.2f}" if a in row and b in row else "" for a, b in ratios.values()
        ]
        lines.append("| " + " | ".join(cells))
    files = FILES[place]
    about = [*files[0], *files[1]]
    picture = f"![Images per second of each depth](images/speed_{place}.png)"
    parts = [
        *(f"{line} |" for line in lines),
        "",
        *origin(about),
        "",
        picture,
        "",
        *convolution_table(place),
    ]
    return "\n".join(parts) + "\n"


def convolution_table(place: str) -> list[str]:
    """Return the GFLOP/s of each product of each distinct convolution, ours and the peer's."""
    ours, theirs = (load(name) for name in FILES[place][2:])
    if not ours or "convolutions" not in theirs:
        return []
    lines = [
        "| GFLOP/s | forward | PyTorch's | input gradient | PyTorch's | kernel gradient | derived by XLA | PyTorch's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, peer in zip(ours["rows"], theirs["convolutions"], strict=True):
        pairs = [
            (row, "forward"),
            (peer, "forward"),
            (row, "input_gradient"),
            (peer, "input_gradient"),
        ]
        pairs += [
            (row, "kernel_gradient"),
            (row, "derived_kernel_gradient"),
            (peer, "kernel_gradient"),
        ]
        if row["c"] == 3:
            pairs[3] = (row, "input_gradient")  # The images need no gradient.
        cells = [
            f"{row['gflops'] / source[name]:,.0f}" if name in source else ""
            for source, name in pairs
        ]
        stride = ", stride 2" if row["stride"] == 2 else ""
        lines.append(
            f"| {row['size']}x{row['size']}, {row['c']} to {row['c2']}{stride} | {' | '.join(cells)} |"
        )
    return [*lines, "", *origin([FILES[place][2]])]


def speeds(place: str) -> list[dict]:
    """Return a row for each depth, with the peer's rates under names that begin with torch_."""
    rows: dict[int, dict] = {}
    for name in FILES[place][0]:
        for row in load(name).get("rows", []):
            rows.setdefault(row["depth"], {}).update(row)
    for file in FILES[place][1]:
        for row in load(file).get("rows", []):
            own = rows.setdefault(
                row["depth"], {name: row[name] for name in ("depth", "batch_size", "dtype")}
            )
            if any(own[name] != row[name] for name in ("batch_size", "dtype")):
                raise ValueError(
                    f"{file}.json has another batch size or dtype than the files it is to stand beside"
                )
            own.update({f"torch_{mode}": row[mode] for mode in row["seconds"]})
    return [rows[depth] for depth in sorted(rows)]


def origin(names: list[str]) -> list[str]:
    """Return where numbers come from: files, device, versions, date."""
    present = {name: result for name in names if (result := load(name))}
    versions = {}
    for result in present.values():
        versions |= {
            name: result["versions"][name]
            for name in ("jax", "torch")
            if name in result["versions"]
        }
    first = next(iter(present.values()))
    files = ", ".join(f"[{name}.json](../results/{name}.json)" for name in present)
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [f"{first['device']}, {packages}, {first['date']}: {files}."]


def load(name: str) -> dict:
    """Return a file of results, empty if it is not there."""
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def draw(rows: list[dict], path: Path) -> None:
    """Draw images per second as a group of bars for each depth."""
    import matplotlib.pyplot as plt

    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    figure, axes = plt.subplots(
        len(rows), figsize=(8, 1 + 1.6 * len(rows)), layout="constrained", squeeze=False
    )
    for ax, row in zip(axes[:, 0], rows, strict=True):
        present = [name for name in shown if name in row]
        colors = ["C0" if name in ("bare", "whole") else "0.6" for name in present]
        bars = ax.barh(
            [COLUMNS[name] for name in present], [row[name] for name in present], color=colors
        )
        ax.bar_label(bars, fmt="{:,.0f}", padding=3)
        ax.invert_yaxis()
        ax.margins(x=0.12)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_title(
            f"ResNet{row['depth']}, batch {row['batch_size']:,}, {row['dtype']}",
            loc="left",
            fontsize=10,
        )
    axes[-1, 0].set_xlabel("images per second, training")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
