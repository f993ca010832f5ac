"""Finished runs as one CSV file, so that a table outlives the folders of its runs.

One row a run, at full precision: `run` (its name), the results named in `RESULTS`, then its
settings, each under its dotted key. An empty cell is a value that the run does not have; `null` is
a setting that is null.
"""

import csv
import io
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsereg.errors import printable
from sparsereg.files import read_text, write_atomically
from sparsereg.runs.folder import LATENCIES, NUMBERS, check_results

RESULTS = (
    *("val_acc", "test_acc", "L_C0", "sparsity", "params", "macs", "dense_params", "dense_macs"),
    *(*LATENCIES, "train_seconds", "checkpoint"),
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
    is_solution: bool = False  # one of those that Optuna's sweeper names


def natural(name: str) -> list[str]:
    """Sorts version_10 after version_9."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def write_records(runs: list[Run], file: Path) -> str:
    """Write the runs that are finished; return what was done, in words.

    What that holds is never lost: if nothing is finished it stays; if it has runs that these are
    not, it is kept under another name.
    """
    runs = [run for run in runs if run.status == "finished"]
    if not runs and file.exists():
        return f"{file.name} is left as it is: no run is finished"
    kept, lost = "", lost_runs(runs, file)
    if lost:
        earlier = free_name(file)
        file.rename(earlier)
        kept = f"; the earlier record has {lost} that are not in this one: now {earlier.name}"
    keys = sorted({key for run in runs for key in run.settings})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", *RESULTS, *keys])
    for run in runs:
        results = [to_cell(run.results.get(key, "")) for key in RESULTS]
        settings = [to_cell(run.settings.get(key, "")) for key in keys]
        writer.writerow([run.name, *results, *settings])
    write_atomically(file, out.getvalue())
    return f"{file.name}{kept}"


def lost_runs(runs: list[Run], file: Path) -> str:
    """What a record holds beside these runs, in words; empty if nothing."""
    try:
        earlier = read_records(file)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):
        return "lines that cannot be read"
    known = {fingerprint(run) for run in runs}
    lost = sum(fingerprint(run) not in known for run in earlier)
    return f"{lost} runs" if lost else ""


def fingerprint(run: Run) -> str:
    """The same for a run and its line in a record, wherever its checkpoint lies now."""
    settings = {key: cell for key, value in run.settings.items() if (cell := to_cell(value))}
    return json.dumps([settings, [run.results.get(key) for key in NUMBERS]], sort_keys=True)


def free_name(file: Path) -> Path:
    """report_1.csv, or the first after it that there is not yet."""
    names = (file.with_stem(f"{file.stem}_{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def read_records(file: Path) -> list[Run]:
    """The runs in one record; none if it is another kind of CSV file.

    Raises:
        OSError, ValueError: it cannot be read, a line has too few or too many cells, or what should
            be a number is none.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        if not {"run", *RESULTS} <= set(reader.fieldnames or ()):
            return []
        return [to_run(row, reader.line_num) for row in reader]
    except (csv.Error, RecursionError) as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def to_run(row: dict[str, str], line: int) -> Run:
    if None in row or None in row.values():
        raise ValueError(f"line {line} has too few or too many cells")
    values = {key: from_cell(text) for key, text in row.items() if key != "run" and text}
    results = {key: values.pop(key) for key in RESULTS if key in values}
    try:
        check_results(results)
    except ValueError as error:
        raise ValueError(f"line {line}: {error}") from None
    return Run(printable(row["run"]), None, settings=values, results=results)


def to_cell(value: Any) -> str:
    """Text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def from_cell(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
