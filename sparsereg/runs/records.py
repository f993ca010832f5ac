"""Finished runs as one CSV file, so that a table outlives the folders of its runs.

One row a run, at full precision: `run` (its name), the results named in `RESULTS`, then its
settings, each under its dotted key. An empty cell is a value that the run does not have; `null` is
a setting that is null.
"""

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = (
    *("val_acc", "test_acc", "L_C0", "sparsity", "params", "macs", "dense_params", "dense_macs"),
    *("ms_batch_1", "speedup_batch_1", "ms_batch_128", "speedup_batch_128"),
    *("train_seconds", "checkpoint"),
)


@dataclass
class Run:
    """One run: `status` is finished, unfinished or broken; `why` is what to know about that.

    `settings` are those that can make a difference (see `commands.comparable`), `results` the
    values of `RESULTS` that there are, `folder` is None for a run from a record.
    """

    name: str
    folder: Path | None
    status: str = "finished"
    why: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    open_channels: dict[str, int] = field(default_factory=dict)


def natural(name: str) -> list[str]:
    """Sorts version_10 after version_9."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def write_records(runs: list[Run], file: Path) -> None:
    """Write the runs that are finished."""
    runs = [run for run in runs if run.status == "finished"]
    keys = sorted({key for run in runs for key in run.settings})
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", *RESULTS, *keys])
        for run in runs:
            results = [to_cell(run.results.get(key, "")) for key in RESULTS]
            settings = [to_cell(run.settings.get(key, "")) for key in keys]
            writer.writerow([run.name, *results, *settings])


def read_records(file: Path) -> list[Run]:
    """The runs in one record; none if it is another kind of CSV file.

    Raises:
        ValueError: a line has too few or too many cells, or an accuracy is not a number.
    """
    with open(file, encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        if not {"run", *RESULTS} <= set(reader.fieldnames or ()):
            return []
        return [to_run(row, reader.line_num) for row in reader]


def to_run(row: dict[str, str], line: int) -> Run:
    if None in row or None in row.values():
        raise ValueError(f"line {line} has too few or too many cells")
    values = {key: from_cell(text) for key, text in row.items() if key != "run" and text}
    results = {key: values.pop(key) for key in RESULTS if key in values}
    for key in ("val_acc", "test_acc", "sparsity", "params", "macs"):
        if not isinstance(results.get(key), int | float):
            raise ValueError(f"line {line}: {key} is not a number: '{row[key]}'")
    return Run(row["run"], None, settings=values, results=results)


def to_cell(value: Any) -> str:
    """Text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def from_cell(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
