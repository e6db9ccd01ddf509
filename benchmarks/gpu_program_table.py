"""The table of docs/speed.md from results/gpu_program.json."""

from benchmarks.limits import training_bytes
from resnet_cifar.report.pages import markdown_table, wrap

HEADING = [
    "kernels", "launches", "MB an image", "limit", "float32", "copies", "temporary GB"
]  # fmt: skip
TITLES = {
    "plain": "plain flax, bare step",
    "bare": "bare step",
    "train": "`train_steps`",
    "eval": "`eval_steps`",
}


def program_table(result: dict) -> list[str]:
    """Return the lines of a table for each GPU, and what they come from."""
    lines = []
    for gpu in dict.fromkeys(row["gpu"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["gpu"] == gpu]
        rows.sort(key=lambda row: (row["depth"], list(TITLES).index(row["program"])))
        lines += [*markdown_table([gpu, *HEADING], map(cells, rows)), ""]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    batch_size, dtype = result["rows"][0]["batch_size"], result["rows"][0]["dtype"]
    origin = "[gpu_program.json](../results/gpu_program.json)"
    return [
        *lines,
        *wrap(f"Batch {batch_size:,}, {dtype}, {versions}, {result['date']}: {origin}."),
    ]


def cells(row: dict) -> list[str]:
    """Return the cells of one program."""
    limit = "" if row["program"] == "eval" else f"{training_bytes(row['depth']) / 1e6:.2f}"
    return [
        f"ResNet{row['depth']}, {TITLES[row['program']]}",
        f"{row['kernels']:,}",
        f"{row['launches']:,}",
        f"{row['bytes_per_image'] / 1e6:.2f}",
        limit,
        f"{row['large_float32']}",
        f"{row['large_copies']}",
        f"{row['temporary_bytes'] / 1e9:.2f}",
    ]
