"""Prints the table of docs/targets.md, of the records in docs/results/targets_digits:
`python -m docs.figures.targets`."""

import json
from itertools import product
from pathlib import Path

RECORDS = Path(__file__).parents[1] / "results" / "targets_digits"


def digits_rows(folder: Path) -> list[str]:
    """For each target what was reached, and the test accuracy, by cost and start; folders of runs
    with ten epochs end in _ten."""
    found = {}
    for path in folder.glob("*/*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        start, _, ten = path.parent.name.partition("_")
        row = f"{result['target_sparsity']}{', ten epochs' if ten else ''}"
        cell = f"{result['reached_sparsity']:.4f} ({result['test_acc']:.1%})"
        found.setdefault(row, {})[start, result["cost"]] = cell
    columns = list(product(("trained", "scratch"), ("params", "macs")))
    return [
        f"| {row} | {' | '.join(cells.get(column, '') for column in columns)} |"
        for row, cells in sorted(found.items())
    ]


if __name__ == "__main__":
    print(*digits_rows(RECORDS), sep="\n")
