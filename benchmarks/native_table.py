"""The table of the native kernels of a CPU, beside XLA's and PyTorch, from results/native_cpu."""

from collections.abc import Callable
from statistics import median

from resnet_cifar.report.pages import markdown_table

RUNS = [
    (20, 128, "float32"),
    (20, 1024, "float32"),
    (56, 128, "float32"),
    (110, 128, "float32"),
    (20, 128, "bfloat16"),
    (20, 1024, "bfloat16"),
]
PROGRAMS = ["native", "xla", "eager", "compiled"]
HEADING = [
    "images/s", "batch", "dtype", "bare step", "of the peak", "whole program",
    "whole program, XLA's kernels", "PyTorch, eager", "PyTorch, compiled", "whole over bare",
    "whole over XLA's", "whole over PyTorch's best",
]  # fmt: skip


def native_rates(
    load: Callable[[str], dict], run: tuple[int, int, str]
) -> dict[str, dict[str, float]]:
    """Return the speeds of each program that was timed: medians over the rounds.

    Args:
      load: returns a file of results by its name, an empty one if there is none.
      run: the depth, the batch size and the dtype.
    """
    names = {program: "_".join(map(str, [program, *run])) for program in PROGRAMS}
    results = {program: load(f"native_cpu/{name}") for program, name in names.items()}
    return {program: medians(result["rows"]) for program, result in results.items() if result}


def medians(rows: list[dict]) -> dict[str, float]:
    """Return the median speed of each mode of a program, and its TFLOP/s if known."""
    names = [*rows[0]["seconds"], *(["tflops"] if "tflops" in rows[0] else [])]
    return {name: median(row[name] for row in rows) for name in names}


def best_of_torch(rates: dict[str, dict[str, float]]) -> float:
    """Return the speed of the fastest of PyTorch's programs, eager or compiled."""
    return max(speed_of_torch(rates, program) for program in ("eager", "compiled"))


def speed_of_torch(rates: dict[str, dict[str, float]], program: str) -> float:
    """Return the speed of its fastest mode, 0 if it was not timed."""
    return max(rates.get(program, {}).values(), default=0.0)


def native_table(load: Callable[[str], dict]) -> list[str]:
    """Return a row for each network, batch and dtype that was timed."""
    peak, rows = load("native_cpu/fma_peak")["gflops"] / 1000, []
    for run in RUNS:
        rates = native_rates(load, run)
        # PyTorch's bfloat16 may be slower than its float32.
        best = max(best_of_torch(rates), best_of_torch(native_rates(load, (*run[:2], "float32"))))
        ours, xla = rates["native"], rates.get("xla")
        peers = [speed_of_torch(rates, program) for program in ("eager", "compiled")]
        rows.append(
            [
                f"ResNet{run[0]}",
                f"{run[1]:,}",
                run[2],
                f"{ours['bare']:,.0f}",
                f"{ours['tflops'] / peak:.2f}",
                f"{ours['whole']:,.0f}",
                f"{xla['whole']:,.0f}" if xla else "",
                *(f"{peer:,.0f}" if peer else "" for peer in peers),
                f"{ours['whole'] / ours['bare']:.2f}",
                f"{ours['whole'] / xla['whole']:.2f}" if xla else "",
                f"{ours['whole'] / best:.2f}",
            ]
        )
    return markdown_table(HEADING, rows)
