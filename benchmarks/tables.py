"""The tables of the measured numbers, on the terminal and in docs/performance.md.

    python -m benchmarks.tables benchmarks/results/cpu.json     # as Markdown

A table is {"title": …, "rows": [{column: cell, …}, …]}; a cell is a text, a number, or the lower
quartile, median and upper quartile of one.
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

TARGETS = (  # what, target, where it is measured: part, way, column, table of the part
    ("gated / ungated step", "at most 1.06", "steps", "gates per sample", "× time of no gates", 0),
    ("reference / our step", "at least 1.9", "steps", "reference formulation", "× time of ours", 0),
    ("images/s of a bfloat16 step", "at least 450", "steps", "no gates", "images/s", 1),
    ("PIL / our data pipeline", "at least 10", "data", "PIL", "× time of batched", 0),
    ("`python test.py` to its table, s", "at most 10", "startup", "python test.py", "s", 0),
    ("`python train.py --help`, s", "at most 5", "startup", "python train.py --help", "s", 0),
)


def show(cell: str | float | list[float]) -> str:
    if isinstance(cell, list):
        low, middle, high = map(show, cell)
        return f"{middle} ({low} to {high})"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:#.3g}".rstrip(".")
    return f"{cell:,}" if isinstance(cell, int) else cell


def print_table(table: dict) -> None:
    shown = Table(title=table["title"], title_justify="left")
    for number, column in enumerate(table["rows"][0]):
        shown.add_column(column, justify="right" if number else "left")
    for row in table["rows"]:
        shown.add_row(*map(show, row.values()))
    Console(width=140).print(shown)


def markdown(table: dict) -> str:
    columns = list(table["rows"][0])
    lines = [columns, ["---"] * len(columns), *(map(show, row.values()) for row in table["rows"])]
    return f"{table['title']}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def targets(results: dict) -> dict:
    """What was aimed at on a CPU, and what was measured."""
    rows = []
    for what, target, part, way, column, table in TARGETS:
        [cell] = [r[column] for r in results[part]["tables"][table]["rows"] if r["way"] == way]
        rows.append({"CPU": what, "target": target, "measured": cell})
    return {"title": "Targets (ratios of times, and seconds)", "rows": rows}


def main(path: str) -> None:
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    print(markdown(targets(results)), end="\n\n")
    for part in results.values():
        print(f"Measured on {part['machine']}, {part['seconds']:.0f} s.\n")
        print(*map(markdown, part["tables"]), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
