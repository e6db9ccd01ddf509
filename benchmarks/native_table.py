"""The table of the native kernels of a CPU, beside XLA's and PyTorch, from results/native_cpu."""

from collections.abc import Callable

from resnet_cifar.report.pages import markdown_table

RUNS = {"128": "ResNet20", "1024": "ResNet20", "56": "ResNet56", "110": "ResNet110"}  # By file.
FILES = [
    f"native_cpu/{kernels}_{name}"
    for name in RUNS
    for kernels in (("native", "xla", "torch") if RUNS[name] == "ResNet20" else ("native", "torch"))
]
HEADING = [
    "images/s", "batch", "bare step", "GFLOP/s", "whole program", "XLA's kernels, whole program",
    "best of PyTorch", "whole over bare", "whole over XLA's", "whole over PyTorch's",
]  # fmt: skip


def native_table(load: Callable[[str], dict]) -> list[str]:
    """Return a row for each network and batch that was timed.

    Args:
      load: returns a file of results by its name.
    """
    rows = []
    for name, network in RUNS.items():
        (ours,) = load(f"native_cpu/native_{name}")["rows"]
        (torch,) = load(f"native_cpu/torch_{name}")["rows"]
        (xla,) = load(f"native_cpu/xla_{name}").get("rows", [{}])
        whole, best = ours["whole"], max(torch[mode] for mode in torch["seconds"])
        rows.append(
            [
                network,
                f"{ours['batch_size']:,}",
                f"{ours['bare']:,.0f}",
                f"{1000 * ours['tflops']:.0f}",
                f"{whole:,.0f}",
                f"{xla['whole']:,.0f}" if xla else "",
                f"{best:,.0f}",
                f"{whole / ours['bare']:.2f}",
                f"{whole / xla['whole']:.2f}" if xla else "",
                f"{whole / best:.2f}",
            ]
        )
    return markdown_table(HEADING, rows)
