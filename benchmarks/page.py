"""Write the tables and pictures of docs/speed.md and docs/scale.md: python -m benchmarks.page."""

import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.gpu_program_table import program_table
from benchmarks.kernels_table import kernel_table
from benchmarks.native_table import native_table
from benchmarks.remat_table import remat_table
from benchmarks.scaling_table import cpu_table, model_table
from resnet_cifar.report.pages import fill, markdown_table, wrap

ROOT = Path(__file__).parents[1]
PAGES = ("docs/speed.md", "docs/scale.md")
# By place: our speeds, PyTorch's speeds, our convolutions, PyTorch's convolutions.
FILES = {
    "cpu": (["throughput_cpu_hugepages"], ["torch_cpu"], "convolutions_cpu", "torch_cpu"),
    "gpu": (
        [f"gpu/{name}_{depth}" for depth in (20, 56, 110) for name in ("ours", "whole")],
        ["gpu/torch_20", "gpu/torch_56", "gpu/torch_usual"],
        "gpu/convolutions",
        "gpu/torch_convolutions",
    ),
}
CONDITIONS = {
    "as above: batch 128, huge pages, Python 3.11": "throughput_cpu_hugepages",
    "without huge pages": "throughput_cpu",
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
RATIOS = {
    "bare over plain": ("bare", "plain"),
    "whole over bare": ("whole", "bare"),
    "bare over PyTorch's bare": ("bare", "torch_bare"),
    "whole over PyTorch's DataLoader": ("whole", "torch_usual"),
    "bare over the roofline": ("bare", "roofline"),
}
CONVOLUTION_HEADING = [
    "GFLOP/s", "forward", "PyTorch's", "input gradient", "PyTorch's", "kernel gradient",
    "derived by XLA", "PyTorch's",
]  # fmt: skip


def main() -> None:
    """Write the pages, and a picture for each place that has been measured."""
    for name in PAGES:
        (ROOT / name).write_text(fill(ROOT / name, sections()))
    for place in FILES:
        if rows := speeds(place):
            draw(rows, ROOT / "docs" / "images" / f"speed_{place}.png")


def sections() -> dict[str, list[str]]:
    """Return the marked sections of the pages."""
    return {
        **{place: place_section(place) for place in FILES},
        "variants": conditions_table(),
        "native": native_section(),
        "startup": startup(),
        "gpu_kernels": [*kernel_table(load("gpu/kernels_20")), *origin(["gpu/kernels_20"])],
        "gpu_program": program_table(load("gpu_program")),
        "remat": remat_table(load("remat_h100"), load("remat_cpu")),
        "scaling_cpu": cpu_table(load("scaling_cpu")),
        "scaling_model": model_table(load("scaling_model")),
    }


def native_section() -> list[str]:
    """Return the speed of the native kernels, beside the peak of the processor."""
    paths = sorted((ROOT / "results/native_cpu").glob("*_*_*.json"))
    peak = load("native_cpu/fma_peak")
    said = (
        f'{peak["threads"]} threads of FMAs reach {peak["gflops"]:.0f} GFLOP/s. "Of the peak" is '
        "the arithmetic of direct convolutions over that. Winograd's takes less."
    )
    files = origin([f"native_cpu/{path.stem}" for path in paths], "native_cpu")
    return [*native_table(load), "", *wrap(said), "", *files]


def conditions_table() -> list[str]:
    """Return the speed of ResNet20 on a CPU under several conditions."""
    rows = []
    for label, name in CONDITIONS.items():
        result = load(name)
        (row,) = (row for row in result["rows"] if row["depth"] == 20)
        rates = [f"{row['plain']:,.0f}", f"{row['bare']:,.0f}", f"{row['bare'] / row['plain']:.2f}"]
        rows.append([f"[{label}](../results/{name}.json)", result["versions"]["jax"], *rates])
    heading = ["ResNet20, images/s", "jax", "plain JAX step", "bare step", "bare over plain"]
    return markdown_table(heading, rows)


def startup() -> list[str]:
    """Return a sentence on the time to the first step, with an empty and a filled cache."""
    result = load("startup_cpu")
    warm = statistics.median(result["warm_seconds"])
    return wrap(
        f"On {result['device']}, ResNet{result['depth']} makes its first step "
        f"{result['cold_seconds']:.0f} s after the command with an empty cache and {warm:.1f} s "
        "with a filled one ([file](../results/startup_cpu.json))."
    )


def place_section(place: str) -> list[str]:
    """Return the tables of a place, or a sentence if it has not been measured."""
    rows = speeds(place)
    if not rows:
        return ["Not measured yet."]
    speed_files = [*FILES[place][0], *FILES[place][1]]
    picture = f"![Images per second of each depth](images/speed_{place}.png)"
    table = [*speed_table(rows), "", *origin(speed_files)]
    return [*table, "", picture, "", *convolution_table(place)]


def speed_table(rows: list[dict]) -> list[str]:
    """Return images per second of each depth, and ratios of them."""
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    ratios = {
        name: pair for name, pair in RATIOS.items() if any(set(pair) <= row.keys() for row in rows)
    }
    heading = ["images/s", "batch", *(COLUMNS[name] for name in shown), *ratios]
    cells = [
        [
            f"ResNet{row['depth']}",
            f"{row['batch_size']:,}",
            *(f"{row[name]:,.0f}" if name in row else "" for name in shown),
            *(f"{row[a] / row[b]:.2f}" if {a, b} <= row.keys() else "" for a, b in ratios.values()),
        ]
        for row in rows
    ]
    return markdown_table(heading, cells)


def convolution_table(place: str) -> list[str]:
    """Return the GFLOP/s of each product of each distinct convolution, ours and the peer's."""
    ours, theirs = (load(name) for name in FILES[place][2:])
    if not ours or "convolutions" not in theirs:
        return []
    pairs = zip(ours["rows"], theirs["convolutions"], strict=True)
    rows = [convolution_row(row, peer) for row, peer in pairs]
    return [*markdown_table(CONVOLUTION_HEADING, rows), "", *origin([FILES[place][2]])]


def convolution_row(row: dict, peer: dict) -> list[str]:
    products = [
        (row, "forward"),
        (peer, "forward"),
        (row, "input_gradient"),
        (peer if row["c"] > 3 else {}, "input_gradient"),  # Images need no gradient.
        (row, "kernel_gradient"),
        (row, "derived_kernel_gradient"),
        (peer, "kernel_gradient"),
    ]
    stride = ", stride 2" if row["stride"] == 2 else ""
    rates = [
        f"{row['gflops'] / source[name]:,.0f}" if name in source else ""
        for source, name in products
    ]
    return [f"{row['size']}x{row['size']}, {row['c']} to {row['c2']}{stride}", *rates]


def speeds(place: str) -> list[dict]:
    """Return a row for each depth; the names of PyTorch's rates begin with `torch_`."""
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
                    f"{file}.json has another batch size or dtype than the files of {place}"
                )
            own.update({f"torch_{mode}": row[mode] for mode in row["seconds"]})
    return [rows[depth] for depth in sorted(rows)]


def origin(names: list[str], folder: str = "") -> list[str]:
    """Return the device, versions, date and files of some numbers, or the folder of the files."""
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
    if folder:
        files = f"[{folder}/*.json](../results/{folder})"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return wrap(f"{first['device']}, {packages}, {first['date']}: {files}.")


def load(name: str) -> dict:
    """Return a file of results, empty if it does not exist."""
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def draw(rows: list[dict], path: Path) -> None:
    """Draw images per second as one group of bars for each depth."""
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    figure = Figure(figsize=(8, 1 + 1.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), squeeze=False)
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
