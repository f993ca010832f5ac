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


def main(path: str) -> None:
    for part in json.loads(Path(path).read_text(encoding="utf-8")).values():
        print(f"Measured on {part['machine']}, {part['seconds']:.0f} s.\n")
        print(*map(markdown, part["tables"]), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
