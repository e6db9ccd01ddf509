"""The tables of docs/scale.md from results/scaling_cpu.json and results/scaling_model.json."""

from resnet_cifar.report.pages import markdown_table, wrap

SHOWN = ((1, ""), (2, ""), (8, ""), (16, "InfiniBand"), (512, "InfiniBand"), (512, "Ethernet"))
HEADING = ["on paper", "GPUs", "all-reduces, ms"]


def cpu_table(result: dict) -> list[str]:
    """Return the rates of virtual devices and of processes on one CPU."""
    if not result:
        return ["Not measured yet."]
    first = result["rows"][0]["images_per_second"]
    heading = [
        f"ResNet{result['depth']}, batch {result['batch_size']:,}",
        "images/s",
        "of the first",
    ]
    rows = [
        [label(row), f"{row['images_per_second']:,.0f}", f"{row['images_per_second'] / first:.2f}"]
        for row in result["rows"]
    ]
    origin = (
        f"{result['device']}, jax {result['versions']['jax']}, {result['date']}, medians: "
        "[scaling_cpu.json](../results/scaling_cpu.json)."
    )
    return [*markdown_table(heading, rows), "", *wrap(origin)]


def label(row: dict) -> str:
    if row["processes"] > 1:
        return f"{row['processes']} processes"
    return f"{row['devices']} virtual devices" if row["devices"] > 1 else "1 device"


def model_table(result: dict) -> list[str]:
    """Return the times of the model for some numbers of GPUs, and where a batch stops gaining."""
    size = f"{result['batch_size']:,}"
    heading = [*HEADING, f"batch {size}, ms", "gain", f"{size} on each, ms", "gain"]
    rows = [model_cells(row) for row in result["rows"] if (row["gpus"], row["link"]) in SHOWN]
    origin = f"{result['gpu']}: [scaling_model.json](../results/scaling_model.json)."
    lines = [*markdown_table(heading, rows), "", *wrap(origin), ""]
    for depth in dict.fromkeys(row["depth"] for row in result["rows"]):
        own = [r for r in result["rows"] if r["depth"] == depth and r["link"] != "Ethernet"]
        best = max(own, key=lambda row: row["constant_speedup"])
        slower = next(row["gpus"] for row in own if row["constant_speedup"] < 1)
        lines += wrap(
            f"- ResNet{depth} at a batch of {size}: fastest on {best['gpus']} GPUs, "
            f"{best['constant_speedup']:.1f} times one. {slower} are slower than one."
        )
    return lines


def model_cells(row: dict) -> list[str]:
    hosts = row["gpus"] // 8
    where = f", {hosts} hosts, {row['link']}" if row["link"] else ""
    return [
        f"ResNet{row['depth']}",
        f"{row['gpus']}{where}",
        f"{row['collective_milliseconds']:.1f}",
        f"{row['constant_milliseconds']:.1f}",
        f"{row['constant_speedup']:.2g}",
        f"{row['growing_milliseconds']:.1f}",
        f"{row['growing_speedup']:.2g}" if row["gpus"] < 100 else f"{row['growing_speedup']:.0f}",
    ]
