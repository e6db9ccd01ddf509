"""The table of docs/speed.md on the time of a step's kernels on a GPU."""

from resnet_cifar.report.pages import markdown_table, wrap


def kernel_table(result: dict) -> list[str]:
    """Return the milliseconds of a step, and the TB/s, of each kind of kernel on a GPU."""
    kernels = {(row["layer"], row["product"]): row for row in result["kernels"]}
    total = sum(row["milliseconds"] for row in kernels.values())

    def cell(layer: str | None, product: str | None) -> str:
        if (layer, product) not in kernels:
            return ""
        row = kernels[layer, product]
        rate = row["bytes"] / row["milliseconds"] / 1e9
        return f"{row['milliseconds']:.2f} ({rate:.1f})"

    products = ["forward", "input_gradient", "kernel_gradient"]
    rows = [
        [layer, *(cell(layer, product) for product in products), f"{share(layer, kernels):.0%}"]
        for layer in sorted({layer for layer, _ in kernels if layer}, key=by_size)
    ]
    rows.append(["everything else", cell(None, None), "", "", f"{share(None, kernels):.0%}"])
    heading = ["ms (TB/s)", "forward", "input gradient", "kernel gradient", "share"]
    step = f"ResNet{result['depth']}, batch {result['batch_size']:,}, {result['dtype']}"
    return [
        *markdown_table(heading, rows),
        "",
        *wrap(f"{step}: {total:.1f} ms of kernels in a step."),
    ]


def by_size(layer: str) -> tuple[int, int, str]:
    """Sort "32x32, 3 to 16" before layers of smaller images, then before those of more channels."""
    size, channels = layer.split()[:2]
    return -int(size.partition("x")[0]), int(channels), layer


def share(layer: str | None, kernels: dict[tuple, dict]) -> float:
    """Return the share of a layer in the time of all kernels."""
    times = {key: row["milliseconds"] for key, row in kernels.items()}
    return sum(time for key, time in times.items() if key[0] == layer) / sum(times.values())
