"""Runs as they lie on disk, read fast and without torch.

A run is a folder, OUTPUT_DIR/lightning_logs/version_N as train.py makes it, or any folder like it:

    config.yaml                                all settings
    summary.json                               the results; only once the run is finished
    metrics.csv, qz_loga.csv                   curves (drawn by `sparsereg.runs.pictures`)
    checkpoints/best_compact/report.json       latency, if compact.py has cut the best checkpoint

`find_runs` reads those below one or several folders, and the records that an earlier report wrote
(`sparsereg.runs.records`). What cannot be read is listed with the reason; it stops nothing.
"""

import json
import os
from pathlib import Path

import yaml

from sparsereg.commands.command_line import as_argument
from sparsereg.commands.comparable import reported_settings
from sparsereg.errors import UserError
from sparsereg.runs.records import RESULTS, Run, natural, read_records

FILES = {"config.yaml", "summary.json", "metrics.csv"}  # a folder with one of them is a run
NUMBERS = ("val_acc", "test_acc", "sparsity", "params", "macs")  # of each summary.json
LATENCY = "checkpoints/best_compact/report.json"
MEASURED = "compact folded"  # the variant in it that one would use


def find_runs(roots: list[str]) -> list[Run]:
    """All runs below the folders, and those in record files, in the order of their names.

    A root may be a record, and records that lie directly in a root are read too. A run that is met
    twice, by two roots or in a record of it, counts once.

    Raises:
        UserError: a root does not exist, or there is no run at all.
    """
    runs = []
    for root in map(Path, roots):
        if not root.exists():
            raise UserError(f"runs={root} does not exist; name a folder of runs, as runs=outputs")
        files = [root] if root.is_file() else sorted(root.glob("*.csv"))
        found = read_folders(root) + [run for file in files for run in read_record(file)]
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
        return [Run(file.name, None, "broken", one_line(file.name, error))]


def read_folders(root: Path) -> list[Run]:
    configs, runs = {}, []
    for path, inner, files in os.walk(root):
        if FILES & set(files):
            inner.clear()  # no runs inside runs
            folder = Path(path)
            name = str(folder.relative_to(root)).replace("lightning_logs/", "")
            runs.append(Run(folder.name if name == "." else name, folder))
            configs[folder.absolute()] = read_config(runs[-1])
    for run in runs:
        if run.status != "broken":
            config = configs[run.folder.absolute()]
            run.settings = reported_settings(started_with(config, configs))
            read_results(run)
    return runs


def read_config(run: Run) -> dict:
    """All settings; empty, and the run marked as broken, if they cannot be read."""
    try:
        with open(run.folder / "config.yaml", encoding="utf-8") as file:
            config = yaml.load(file, yaml.CSafeLoader)  # ten times as fast as the one in Python
        if not isinstance(config, dict):
            raise ValueError("holds no settings")
        return config
    except (OSError, ValueError, yaml.YAMLError) as error:
        run.status, run.why = "broken", one_line("config.yaml", error)
        return {}


def started_with(config: dict, configs: dict[Path, dict]) -> dict:
    """Settings of a run; of one that was resumed, with what its first part began with.

    Unless that part is gone: then the run stays marked as resumed.
    """
    first = config
    while first.get("resume_training"):
        before = Path(first["ckpt_path"]).absolute().parents[1]
        if before not in configs or configs[before] is first:
            return config
        first = configs[before]
    return config | {key: first.get(key) for key in ("ckpt_path", "resume_training")}


def read_results(run: Run) -> None:
    """Fill in what summary.json and report.json say, or why they do not."""
    try:
        summary = read_json(run.folder / "summary.json")
        if wrong := [k for k in NUMBERS if not isinstance(summary.get(k), int | float)]:
            raise ValueError(f"no number for {', '.join(wrong)}")
    except FileNotFoundError:
        run.status, run.why = "unfinished", why_unfinished(run.folder)
        return
    except (OSError, ValueError) as error:
        run.status, run.why = "broken", one_line("summary.json", error)
        return
    run.results = {key: summary[key] for key in RESULTS if summary.get(key) is not None}
    run.open_channels = summary.get("open_channels", {})
    try:
        run.results |= read_latency(run.folder / LATENCY)
    except (OSError, ValueError, KeyError, TypeError) as error:
        run.why = one_line(f"no latency: {LATENCY}", error)


def read_latency(path: Path) -> dict[str, float]:
    """Milliseconds and speed-up over the dense folded network; empty if not measured."""
    if not path.exists():
        return {}
    row = read_json(path)["variants"][MEASURED]
    return {key: float(row[key]) for key in RESULTS if key.startswith(("ms_", "speedup_"))}


def read_json(path: Path) -> dict:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("holds no table")
    return content


def why_unfinished(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "no summary.json, no checkpoint: in its first epoch, or stopped there"
    command = f"python train.py {as_argument(last)} resume_training=true"
    return f"no summary.json: still training, or stopped; to go on: {command}"


def one_line(file: str, error: Exception) -> str:
    """What is wrong with a file, in one line of bearable length."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{file}: {text}" if len(text) <= 160 else f"{file}: {text[:159]}…"
