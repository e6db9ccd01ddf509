"""The table of docs/scale.md on rematerialization."""

from resnet_cifar.report.pages import markdown_table, wrap


def remat_table(*results: dict) -> list[str]:
    """Return the memory with and without rematerialization, and the relative time if measured."""
    cells = []
    for result in results:
        by_network: dict[tuple, dict[bool, dict]] = {}
        for row in result["rows"]:
            key = (row["depth"], row["width"], row["batch_size"])
            by_network.setdefault(key, {})[row["remat"]] = row
        for (depth, width, size), rows in by_network.items():
            where = f"{result['gpu']}, compiled only" if "gpu" in result else result["device"]
            memory = [gigabytes(rows.get(remat, {})) for remat in (False, True)]
            cells.append([where, f"ResNet{depth}", width, f"{size:,}", *memory, slowdown(rows)])
    heading = [
        "device",
        "network",
        "width",
        "batch",
        "GB stored",
        "GB with remat",
        "time with remat",
    ]
    made = dict.fromkeys(f"jax {r['versions']['jax']}, {r['date']}" for r in results)
    files = ", ".join(
        f"[{name}.json](../results/{name}.json)" for name in ("remat_h100", "remat_cpu")
    )
    return [
        *markdown_table(heading, [[str(cell) for cell in row] for row in cells]),
        "",
        *wrap(f"{'; '.join(made)}: {files}."),
    ]


def gigabytes(row: dict) -> str:
    return f"{row['temporary_bytes'] / 1e9:.2f}" if row.get("temporary_bytes") else ""


def slowdown(rows: dict[bool, dict]) -> str:
    """Return the time of a step with rematerialization over that without."""
    if not all("images_per_second" in rows.get(remat, {}) for remat in (False, True)):
        return ""
    return f"{rows[False]['images_per_second'] / rows[True]['images_per_second']:.2f}"
