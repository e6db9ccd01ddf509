"""Write the table of docs/reliability.md from results/faults.json: python tests/faults/table.py."""

import json
from pathlib import Path

from resnet_cifar.report.tables import between_markers

ROOT = Path(__file__).parents[2]


def table(result: dict) -> str:
    """Return a record of faults as Markdown."""
    lines = [
        "| fault | tried | survived | lost, at most | seconds to exit, at most |",
        "|---|---|---|---|---|",
    ]
    for fault, row in sorted(result["faults"].items()):
        epochs = row.get("epochs_to_repeat", 0)
        lost = f"{epochs} epoch{'s' * (epochs > 1)} to train again" if epochs else "nothing"
        seconds = f"{row['seconds_to_exit']:.1f}" if "seconds_to_exit" in row else ""
        lines.append(f"| {fault} | {row['tried']} | {row['survived']} | {lost} | {seconds} |")
    versions = result["versions"]
    lines += ["", f"{result['device']}, Python {versions['python']}, jax {versions['jax']}, orbax-checkpoint "
              f"{versions['orbax-checkpoint']}, {result['date']}, seed of the moments {result['seed']}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def update(page: str, result: dict) -> str:
    """Return a page with the table between its markers."""
    return between_markers(page, "faults", table(result))


if __name__ == "__main__":
    page = ROOT / "docs" / "reliability.md"
    page.write_text(
        update(page.read_text(), json.loads((ROOT / "results" / "faults.json").read_text()))
    )
