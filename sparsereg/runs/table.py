"""The table of many runs: which settings differ, and what came out.

Runs whose settings are equal but for `seed` make one row, mean ± standard deviation (with n - 1).
"""

import json
import re
import statistics
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from sparsereg.commands.comparable import network_name
from sparsereg.commands.settings import BUDGETS
from sparsereg.errors import printable
from sparsereg.runs.records import Run, natural

LONGEST = 200  # characters of a cell
BEFORE = ("optuna", "data", "data.name", "model", "start", "lambda_l0", *BUDGETS, "cost")
AFTER = (  # the results, in this order, then the other settings by name
    *("droprate_init", "gate_lr", "trainer.max_epochs", "optimizer", "optimizer.lr", "scheduler"),
)
PERCENT, SHARE, COUNT, TIME = (100, ".2f"), (1, ".4f"), (1, ",.0f"), (1, ".2f")
RESULT_COLUMNS = {  # result: heading, (factor, format)
    "val_acc": ("val, %", PERCENT),
    "test_acc": ("test, %", PERCENT),
    "L_C0": ("L_C0", SHARE),
    "sparsity": ("sparsity", SHARE),
    "params": ("params", COUNT),
    "macs": ("MACs", COUNT),
    "ms_batch_1": ("ms, batch 1", TIME),
    "ms_batch_128": ("ms, batch 128", TIME),
}


class Row:
    """Runs with the same settings, whatever their seeds."""

    def __init__(self, runs: list[Run]):
        self.runs = runs
        settings = runs[0].settings
        self.settings = {k: v for k, v in settings.items() if k not in ("seed", "model.name")}
        if "model" in settings:
            self.settings["model"] = network_name(settings)
        if any(run.is_solution for run in runs):
            self.settings["optuna"] = "solution"

    def mean_sd(self, result: str) -> tuple[float | None, float]:
        """Mean and standard deviation over the runs; None if no run has the result."""
        values = [run.results[result] for run in self.runs if result in run.results]
        if not values:
            return None, 0.0
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def seeds(self) -> str:
        seeds = [setting_text(run.settings.get("seed", "?")) for run in self.runs]
        seeds.sort(key=natural)
        return f"{len(seeds)} ({', '.join(seeds)})"

    def checkpoint(self) -> str:
        """Of the seed with the highest validation accuracy."""
        best = max(self.runs, key=lambda run: run.results["val_acc"])
        return printable(best.results.get("checkpoint", ""))


def group_seeds(runs: Iterable[Run]) -> list[Row]:
    """The finished runs as rows, the densest first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.status == "finished":
            settings = {key: value for key, value in run.settings.items() if key != "seed"}
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    rows = map(Row, groups.values())
    return sorted(rows, key=lambda r: (r.mean_sd("sparsity")[0], -r.mean_sd("test_acc")[0]))


def differing_settings(rows: list[Row]) -> list[str]:
    """Keys that have different values. Older runs may lack a key: that is no difference."""
    values: dict[str, set[str]] = {}
    if any("optuna" in row.settings for row in rows):
        values["optuna"] = {"solution", ""}  # a row that is none has no such key
    for row in rows:
        for key, value in row.settings.items():
            values.setdefault(key, set()).add(json.dumps(value))
    differing = {key for key, seen in values.items() if len(seen) > 1}
    first = BEFORE + AFTER
    return [k for k in first if k in differing] + sorted(differing - set(first))


def constant_settings(rows: list[Row]) -> dict[str, Any]:
    """What all rows have in common, but for what is not set."""
    settings, differing = rows[0].settings, {*differing_settings(rows)}
    return {k: v for k, v in sorted(settings.items()) if k not in differing and v is not None}


def table(rows: list[Row], with_checkpoint: bool = True) -> list[list[str]]:
    """Headings, then one list of cells for each row: what a run is, its results, other settings."""
    keys = differing_settings(rows)
    before, after = ([k for k in keys if (k in BEFORE) == first] for first in (True, False))
    columns = [settings_of(rows, before), results_of(rows), settings_of(rows, after)]
    if with_checkpoint:
        columns.append([["checkpoint"], *([row.checkpoint()] for row in rows)])
    return [[cell for part in parts for cell in part] for parts in zip(*columns, strict=True)]


def settings_of(rows: list[Row], keys: list[str]) -> list[list[str]]:
    """The keys, then their values in each row."""
    return [keys, *([setting_text(row.settings.get(key)) for key in keys] for row in rows)]


def results_of(rows: list[Row]) -> list[list[str]]:
    """The headings of the results that some row has, then each row's."""
    shown = {
        result: column
        for result, column in RESULT_COLUMNS.items()
        if any(row.mean_sd(result)[0] is not None for row in rows)
    }
    cells = [[*(heading for heading, _ in shown.values()), "seeds"]]
    for row in rows:
        results = [mean_text(*row.mean_sd(key), *style) for key, (_, style) in shown.items()]
        cells.append([*results, row.seeds()])
    return cells


def setting_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return printable(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")


def mean_text(mean: float | None, sd: float, factor: float, style: str) -> str:
    if mean is None:
        return ""
    spread = f" ± {factor * sd:{style}}" if sd > 0 else ""
    return f"{factor * mean:{style}}{spread}"


def markdown(cells: list[list[str]]) -> str:
    rows = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells]
    rows.insert(1, " | ".join("---" for _ in cells[0]))
    return "\n".join(f"| {row} |" for row in rows)


def settings_text(settings: dict[str, Any], keys: list[str]) -> str:
    """In one line: lambda_l0=20  droprate_init=0.05."""
    texts = {key: setting_text(settings.get(key)) for key in keys}
    return "  ".join(f"{key}={text}" for key, text in texts.items() if text)


def rich_table(rows: list[Row]) -> Table:
    """For the terminal: numbered rows, all settings in one column, and no checkpoints."""
    keys = differing_settings(rows)
    headings, *cells = results_of(rows)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("", no_wrap=True)
    shown.add_column("settings", overflow="fold", min_width=12)
    for heading in headings:
        heading = re.sub(r"[-,] ?", r"\g<0>\n", heading)
        shown.add_column(heading, no_wrap=heading != "seeds", justify="right")
    for number, (row, results) in enumerate(zip(rows, cells, strict=True), 1):
        results = [result.replace(" ±", "\n±") for result in results]
        cells_of_row = (settings_text(row.settings, keys), *results)
        shown.add_row(str(number), *map(Text, cells_of_row))  # as it is, brackets too
    return shown
