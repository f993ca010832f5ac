"""All runs below folders, read fast and without torch.

A run is a folder as `sparsereg.runs.folder` describes it, wherever it lies. `find_runs` reads those
below one or several folders, and the records that an earlier report wrote
(`sparsereg.runs.records`). What cannot be read is listed with the reason; it stops nothing.
"""

import json
import os
from pathlib import Path

import yaml

from sparsereg.commands.comparable import reported_settings
from sparsereg.errors import UserError, printable
from sparsereg.files import read_text
from sparsereg.runs.folder import (
    read_config,
    read_latency,
    read_summary,
    started_with,
    why_unfinished,
)
from sparsereg.runs.records import RESULTS, Run, natural, read_records

SOLUTIONS = "optimization_results.yaml"  # what Optuna's sweeper leaves in its folder
FILES = {"config.yaml", "summary.json", "metrics.csv"}  # a folder with one of them is a run


def find_runs(roots: list[str]) -> list[Run]:
    """All runs below the folders, and those in record files, in the order of their names.

    A root may be a record, and records that lie directly in a root are read too. A run that is met
    twice, by two roots or in a record of it, counts once.

    Raises:
        UserError: a root does not exist, or there is no run at all.
    """
    runs, folders = [], [Path(root) for root in roots]
    for root in folders:
        if not root.exists():
            raise UserError(f"runs={root} does not exist; name a folder of runs, as runs=outputs")
        files = [root]
        if root.is_dir():
            files = sorted(file for file in root.glob("*.csv") if not file.is_dir())
        found = [run for file in files for run in read_record(file)]
        found += read_folders(root, folders) if root.is_dir() else []
        runs += sorted(found, key=lambda run: natural(run.name))
    if not runs:
        where = ", ".join(map(str, roots))
        raise UserError(f"runs={where}: there is no run in it, no folder with a config.yaml")
    return list({identity(run): run for run in reversed(runs)}.values())[::-1]


def identity(run: Run) -> str:
    """Of a finished run what came out, with the seconds that it took; otherwise where it lies."""
    if run.status == "finished":
        return json.dumps([run.settings, run.results], sort_keys=True)
    return run.name if run.folder is None else str(run.folder.absolute())


def read_record(file: Path) -> list[Run]:
    try:
        return read_records(file)
    except (OSError, ValueError) as error:
        return [Run(printable(file.name), None, "broken", one_line(file.name, error))]


def read_folders(root: Path, roots: list[Path]) -> list[Run]:
    runs, solutions = [], []

    def unreadable(error: OSError) -> None:
        name = printable(error.filename)
        runs.append(Run(name, Path(error.filename), "broken", one_line("folder", error)))

    for path, inner, files in os.walk(root, onerror=unreadable):
        if FILES & set(files):
            inner.clear()  # no runs inside runs
            folder = Path(path)
            name = str(folder.relative_to(root)).replace("lightning_logs/", "")
            run = Run(printable(folder.name if name == "." else name), folder)
            runs.append(read_run(run, roots))
        elif SOLUTIONS in files:
            solutions.append(Path(path))
    for folder in solutions:
        try:
            mark_solutions(folder, runs)
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
            runs.append(Run(printable(folder), folder, "broken", one_line(SOLUTIONS, error)))
    return runs


def mark_solutions(folder: Path, runs: list[Run]) -> None:
    """The runs below a sweep's folder that Optuna's file names, by what came out of them; a search
    for one number has a best trial and no solutions."""
    found = yaml.load(read_text(folder / SOLUTIONS, most=2**20), yaml.CSafeLoader)
    values = {tuple(map(float, solution["values"])) for solution in found.get("solutions", ())}
    for run in runs:
        results = run.results.get("val_acc"), run.results.get("sparsity")
        run.is_solution |= results in values and folder in run.folder.parents


def read_run(run: Run, roots: list[Path]) -> Run:
    """Fill in what its files say, or why they do not."""
    try:
        config = started_with(read_config(run.folder), run.folder, roots)
        run.settings = reported_settings(config)
    except (OSError, ValueError) as error:
        run.status, run.why = "broken", one_line("config.yaml", error)
        return run
    try:
        summary = read_summary(run.folder)
    except FileNotFoundError:
        run.status, run.why = "unfinished", printable(why_unfinished(run.folder))
        return run
    except (OSError, ValueError) as error:
        run.status, run.why = "broken", one_line("summary.json", error)
        return run
    run.results = {key: summary[key] for key in RESULTS if summary.get(key) is not None}
    run.open_channels = summary.get("open_channels", {})
    checkpoint = Path(summary.get("checkpoint", "best.ckpt"))  # the one that has these results
    try:
        run.results |= read_latency(run.folder, checkpoint.name)
    except (OSError, ValueError) as error:
        file = f"no latency: checkpoints/{checkpoint.stem}_compact/report.json"
        run.why = one_line(file, error)
    return run


def one_line(file: str, error: Exception) -> str:
    """What is wrong with a file, in one line of bearable length."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    text = text if len(text) <= 160 else f"{text[:159]}…"
    return printable(f"{file}: {text}")
