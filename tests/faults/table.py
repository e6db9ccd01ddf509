"""Write the tables of faults from results/: python tests/faults/table.py."""

import json
from pathlib import Path
from typing import Any

from resnet_cifar.report.pages import fill, markdown_table, wrap

ROOT = Path(__file__).parents[2]
HEADING = ["fault", "tried", "survived", "lost, at most", "seconds to exit, at most"]
PAGES = {"faults": "docs/reliability.md", "process_faults": "docs/scale.md"}


def sections(name: str) -> dict[str, list[str]]:
    """Return the marked section of a page from the record of faults in results/<name>.json."""
    result = json.loads((ROOT / "results" / f"{name}.json").read_text())
    rows = [fault_row(fault, row) for fault, row in sorted(result["faults"].items())]
    versions = result["versions"]
    origin = (
        f"{result['device']}, Python {versions['python']}, jax {versions['jax']}, orbax-checkpoint "
        f"{versions['orbax-checkpoint']}, {result['date']}, random seed {result['seed']}."
    )
    return {name: [*markdown_table(HEADING, rows), "", *wrap(origin)]}


def fault_row(fault: str, row: dict[str, Any]) -> list[str]:
    epochs = row.get("epochs_to_repeat", 0)
    lost = f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "nothing"
    seconds = f"{row['seconds_to_exit']:.1f}" if "seconds_to_exit" in row else ""
    if "largest_difference" in row:
        difference = row["largest_difference"]
        fault += f": parameters differ by {difference:.0e} at most" if difference else ": equal"
    return [fault, str(row["tried"]), str(row["survived"]), lost, seconds]


if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / page).write_text(fill(ROOT / page, sections(name)))
