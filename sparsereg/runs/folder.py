"""A run on disk, OUTPUT_DIR/lightning_logs/version_N: claimed by one run, and read in one way.

config.yaml                                all settings
summary.json                               the results; only once the run is finished
metrics.csv, qz_loga.csv                   curves (drawn by `sparsereg.runs.pictures`)
checkpoints/last.ckpt, best.ckpt
checkpoints/best_compact/                  what compact.py makes of best.ckpt
"""

import json
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from sparsereg.commands.overrides import as_argument
from sparsereg.errors import UserError

NUMBERS = ("val_acc", "test_acc", "sparsity", "params", "macs")  # of each summary.json
LATENCIES = ("ms_batch_1", "speedup_batch_1", "ms_batch_128", "speedup_batch_128")
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
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
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


def read_config(folder: Path) -> dict:
    """All settings of a run.

    Raises:
        OSError, ValueError, yaml.YAMLError: they cannot be read.
    """
    with open(folder / "config.yaml", encoding="utf-8") as file:
        config = yaml.load(file, yaml.CSafeLoader)  # ten times as fast as the one in Python
    if not isinstance(config, dict):
        raise ValueError("holds no settings")
    return config


def read_json(path: Path) -> dict:
    """Raises OSError, ValueError: it cannot be read."""
    content = json.loads(path.read_text(encoding="utf-8"))
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
    if wrong := [key for key in NUMBERS if not isinstance(summary.get(key), int | float)]:
        raise ValueError(f"no number for {', '.join(wrong)}")
    return summary


def read_latency(folder: Path) -> dict[str, float]:
    """Milliseconds and speed-up over the dense folded network; empty if not measured."""
    path = compact_folder(folder / "checkpoints" / "best.ckpt") / "report.json"
    if not path.exists():
        return {}
    row = read_json(path)["variants"][MEASURED]
    return {key: float(row[key]) for key in LATENCIES}


def started_with(config: dict) -> dict:
    """Settings of a run; of one that was resumed, with what its first part began with.

    Unless that part is gone: then the run stays marked as resumed.
    """
    first = config
    while first.get("resume_training"):
        try:
            first = read_config(Path(first["ckpt_path"]).absolute().parents[1])
        except (OSError, ValueError, yaml.YAMLError):
            return config
    return config | {key: first.get(key) for key in ("ckpt_path", "resume_training", "model")}


def why_unfinished(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "no summary.json, no checkpoint: in its first epoch, or stopped there"
    command = f"python train.py {as_argument(last)} resume_training=true"
    return f"no summary.json: still training, or stopped; to go on: {command}"
