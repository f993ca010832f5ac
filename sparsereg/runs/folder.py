"""A run on disk, OUTPUT_DIR/lightning_logs/version_N: claimed by one run, and read in one way.

config.yaml                                all settings
summary.json                               the results; only once the run is finished
metrics.csv, qz_loga.csv                   curves (drawn by `sparsereg.runs.pictures`)
checkpoints/last.ckpt, best.ckpt
checkpoints/best_compact/                  what compact.py makes of best.ckpt; or last_compact
"""

import copy
import datetime
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from sparsereg.commands.overrides import as_argument
from sparsereg.errors import UserError
from sparsereg.files import read_text

NUMBERS = ("val_acc", "test_acc", "sparsity", "params", "macs")  # of each summary.json
SOME = ("L_C0", "dense_params", "dense_macs", "train_seconds")  # that it may have besides
SHARES = ("val_acc", "test_acc", "sparsity")
BIG = 1e30
LATENCIES = ("ms_batch_1", "speedup_batch_1", "ms_batch_128", "speedup_batch_128")
BETWEEN_RUNS = ("ckpt_path", "loss.teacher")  # files that may be of another run
DEEPEST = 1000  # levels of a configuration that the reader of YAML survives
MEASURED = "compact folded"  # the variant in a compact folder's report that one would use


def claim_version(root: Path, cfg: DictConfig) -> int:
    """Create the first free ROOT/version_N, keep the resolved configuration in it, return N.

    `mkdir` is atomic: no two runs get the same folder. Only the first process of a distributed
    run has one; the others write nothing.

    Raises:
        UserError: the folder cannot be created.
    """
    from pytorch_lightning.utilities.rank_zero import rank_zero_only  # imports torch

    if rank_zero_only.rank != 0:
        return -1
    try:
        root.mkdir(parents=True, exist_ok=True)
        numbers = [number(path) for path in root.glob("version_*")]
        claimed = max((int(n) + 1 for n in numbers if n.isdigit()), default=0)
        while True:
            folder = root / f"version_{claimed}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                claimed += 1
        write_config(folder, cfg)
        return claimed
    except OSError as error:
        raise UserError(
            f"output_dir={root.parent} cannot be written ({error.strerror}: {error.filename})"
        ) from None


def number(folder: Path) -> str:
    return folder.name.removeprefix("version_")


def compact_folder(checkpoint: Path, round_to: int = 1) -> Path:
    """Where the cut network of a checkpoint lies: best_compact beside best.ckpt, or best_compact_8
    with `round_to=8`."""
    suffix = f"_{round_to}" if round_to > 1 else ""
    return checkpoint.with_name(f"{checkpoint.stem}_compact{suffix}")


def write_config(folder: Path, cfg: DictConfig) -> None:
    """All settings, resolved. What lies in the same output_dir is named relative to the run's
    folder, so that both can be moved together; everything else absolutely."""
    cfg = copy.deepcopy(cfg)
    for key in BETWEEN_RUNS:
        path = OmegaConf.select(cfg, key)
        if path is not None:
            path = Path(path).expanduser().resolve()
            is_beside = path.is_relative_to(folder.resolve().parents[1])
            name = os.path.relpath(path, folder.resolve()) if is_beside else str(path)
            OmegaConf.update(cfg, key, name)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")


def read_config(folder: Path) -> dict:
    """All settings of a run, with the places where the files of `BETWEEN_RUNS` lie now.

    Raises:
        OSError, ValueError: they cannot be read.
    """
    text = read_text(folder / "config.yaml", most=2**20)
    # libyaml recurses: what is nested deeply enough ends the process
    indented = max((len(indent) for indent in re.findall(r"^[ ?:-]*", text, re.M)), default=0)
    if text.count("[") + text.count("{") + indented > DEEPEST:
        raise ValueError("is nested too deeply")
    try:
        config = yaml.load(text, yaml.CSafeLoader)  # ten times as fast as the one in Python
    except Exception as error:  # tags with nonsense raise KeyError, AttributeError, …
        raise ValueError(str(error)) from error
    if not isinstance(config, dict):
        raise ValueError("holds no settings")
    config = plain(config)
    for group, key in (key.rpartition(".")[::2] for key in BETWEEN_RUNS):
        settings = config.get(group, {}) if group else config
        if isinstance(settings, dict) and isinstance(settings.get(key), str):
            settings[key] = str(locate(settings[key], folder, config.get("output_dir")))
    return config


def locate(path: str, folder: Path, output_dir: Any) -> Path:
    """Where a file that a run names lies, after both may have been moved. Older versions named it
    as it was typed, relative to their working directory."""
    beside = folder / path
    if beside.exists():
        return Path(os.path.normpath(beside))
    if isinstance(output_dir, str) and Path(path).is_relative_to(output_dir):
        moved = folder.absolute().parents[1] / Path(path).relative_to(output_dir)
        if moved.exists():
            return moved
    return Path(path)


def plain(value: Any, depth: int = 0) -> Any:
    """Settings as texts, numbers, lists and tables of these.

    Raises:
        ValueError: something else, or more of it than settings are.
    """
    if depth > 8:
        raise ValueError("is nested too deeply")
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, datetime.date):
        return str(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("has a number of more than 64 bits")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"has a value that is no setting: {value!r}")


def read_json(path: Path) -> dict:
    """Raises OSError, ValueError: it cannot be read."""
    try:
        content = json.loads(read_text(path, most=2**24))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("holds no table")
    return content


def read_summary(folder: Path) -> dict:
    """The results of a finished run.

    Raises:
        FileNotFoundError: it is not finished.
        OSError, ValueError: they cannot be read.
    """
    summary = read_json(folder / "summary.json")
    check_results(summary)
    opened = summary.get("open_channels", {})
    if not isinstance(opened, dict) or not all(is_result(n) for n in opened.values()):
        raise ValueError("open_channels are no numbers")
    if isinstance(name := summary.get("checkpoint"), str):
        here = [folder / name, folder / "checkpoints" / Path(name).name]
        summary["checkpoint"] = str(next((file for file in here if file.exists()), name))
    return summary


def check_results(results: dict) -> None:
    """Raise ValueError unless what should be a number is one."""
    if missing := [key for key in NUMBERS if results.get(key) is None]:
        raise ValueError(f"no number for {', '.join(missing)}")
    for key in (*NUMBERS, *SOME):
        if results.get(key) is not None and not is_result(results[key]):
            raise ValueError(f"{key} is not a number: {results[key]!r}")
    if wrong := [key for key in SHARES if not -1 <= results[key] <= 1]:
        raise ValueError(f"{', '.join(wrong)} must be a share of 1")
    if not isinstance(results.get("checkpoint", ""), str):
        raise ValueError("checkpoint is no name of a file")


def is_result(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -BIG < value < BIG


def read_latency(folder: Path, checkpoint: str) -> dict[str, float]:
    """Milliseconds and speed-up over the dense folded network of a run's checkpoint, best.ckpt or
    last.ckpt; empty if not measured.

    Raises:
        OSError, ValueError: they cannot be read.
    """
    path = compact_folder(folder / "checkpoints" / checkpoint) / "report.json"
    if not path.exists():
        return {}
    try:
        row = read_json(path)["variants"][MEASURED]
        measured = {key: row[key] for key in LATENCIES}
    except (LookupError, TypeError) as error:
        raise ValueError(f"lacks {error}") from None
    if not all(is_result(number) for number in measured.values()):
        raise ValueError("holds something else than numbers")
    return measured


def started_with(config: dict, folder: Path, roots: Iterable[Path]) -> dict:
    """Settings of a run; of one that was resumed, with what its first part began with.

    Unless that part is gone, or outside the `roots`: then the run stays marked as resumed.
    """
    roots = [root.resolve() for root in roots]
    first, seen = config, {folder.resolve()}
    while first.get("resume_training"):
        before = run_of(str(first.get("ckpt_path")))
        if before in seen or not any(before.is_relative_to(root) for root in roots):
            return config
        seen.add(before)
        try:
            first = read_config(before)
        except (OSError, ValueError):
            return config
    return config | {key: first.get(key) for key in ("ckpt_path", "resume_training", "model")}


def run_of(checkpoint: str) -> Path:
    """The folder of the run that wrote RUN/checkpoints/NAME."""
    return Path(checkpoint).resolve().parent.parent


def why_unfinished(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "no summary.json, no checkpoint: in its first epoch, or stopped there"
    command = f"python train.py {as_argument(last)} resume_training=true"
    return f"no summary.json: still training, or stopped; to go on: {command}"
