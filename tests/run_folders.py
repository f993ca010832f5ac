"""Run folders as train.py leaves them, made without training."""

import csv
import json
from pathlib import Path

import yaml

CONFIG = {
    "ckpt_path": None,
    "resume_training": False,
    "without_using_gate": False,
    "lambda_l0": 0.5,
    "droprate_init": 0.5,
    "target_sparsity": None,
    "seed": 1,
    "output_dir": "outputs/train/tblog",
    "data": {"_target_": "sparsereg.data.Cifar", "name": "cifar10", "root": "data", "seed": 1},
    "model": {"_target_": "sparsereg.model.googlenet.GoogleNet", "droprate_init": 0.5},
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.001},
    "trainer": {"max_epochs": 180, "enable_progress_bar": True},
    "callbacks": {"epoch_seed": {"seed": 1}},
    "logger": {},
}
SUMMARY = {
    "checkpoint": "outputs/best.ckpt",
    "val_acc": 0.9,
    "test_acc": 0.89,
    "L_C0": 0.5,
    "sparsity": 0.25,
    "params": 195_487,
    "macs": 60_000_000,
    "dense_params": 260_650,
    "dense_macs": 79_643_904,
    "open_channels": {"block1/1x1": 16, "block1/max": 0, "block2/1x1": 3, "block2/max": 8},
    "train_seconds": 100.0,
}
METRICS = [
    {"step": 0, "L_C0": 0.8, "sparsity": ""},
    {"step": 9, "L_C0": "", "sparsity": 0.1},
    {"step": 10, "L_C0": 0.5, "sparsity": ""},
    {"step": 19, "L_C0": "", "sparsity": 0.25},
]
COUNTS = [
    {"step": 10, "-inf": 0, "-1.0": 8, "0.0": 0, "1.0": 0},
    {"step": 20, "-inf": 4, "-1.0": 0, "0.0": 2, "1.0": 2},
]


def make_run(folder: Path, config: dict | None = None, **results) -> Path:
    """A finished run; keys of `config` and of its groups replace those of CONFIG."""
    folder.mkdir(parents=True)
    settings = CONFIG | {
        key: CONFIG[key] | value if isinstance(value, dict) else value
        for key, value in (config or {}).items()
    }
    if "seed" in settings:
        settings["data"] = settings["data"] | {"seed": settings["seed"]}
    (folder / "config.yaml").write_text(yaml.dump(settings, Dumper=yaml.CSafeDumper))
    (folder / "summary.json").write_text(json.dumps(SUMMARY | results))
    write_csv(folder / "metrics.csv", METRICS)
    write_csv(folder / "qz_loga.csv", COUNTS)
    return folder


def write_csv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def make_latency(folder: Path, content: str | None = None, of: str = "best") -> None:
    file = folder / "checkpoints" / f"{of}_compact" / "report.json"
    file.parent.mkdir(parents=True)
    times = {"ms_batch_1": 6.64, "speedup_batch_1": 1.18}
    times |= {"ms_batch_128": 278.97, "speedup_batch_128": 1.46}
    file.write_text(content or json.dumps({"variants": {"compact folded": times}}))
