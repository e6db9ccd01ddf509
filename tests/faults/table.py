"""Write the table of docs/reliability.md from results/faults.json: python tests/faults/table.py."""

import json
from pathlib import Path
from typing import Any

from resnet_cifar.report.pages import fill, markdown_table, wrap

ROOT = Path(__file__).parents[2]
HEADING = ["fault", "tried", "survived", "lost, at most", "seconds to exit, at most"]


def sections(result: dict[str, Any]) -> dict[str, list[str]]:
    """Return the marked section of the page from a record of faults."""
    rows = [fault_row(fault, row) for fault, row in sorted(result["faults"].items())]
    versions = result["versions"]
    origin = (
        f"{result['device']}, Python {versions['python']}, jax {versions['jax']}, orbax-checkpoint "
        f"{versions['orbax-checkpoint']}, {result['date']}, random seed {result['seed']}."
    )
    return {"faults": [*markdown_table(HEADING, rows), "", *wrap(origin)]}


def fault_row(fault: str, row: dict[str, Any]) -> list[str]:
    epochs = row.get("epochs_to_repeat", 0)
    lost = f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "nothing"
    seconds = f"{row['seconds_to_exit']:.1f}" if "seconds_to_exit" in row else ""
    return [fault, str(row["tried"]), str(row["survived"]), lost, seconds]


if __name__ == "__main__":
    page = ROOT / "docs" / "reliability.md"
    page.write_text(fill(page, sections(json.loads((ROOT / "results/faults.json").read_text()))))
