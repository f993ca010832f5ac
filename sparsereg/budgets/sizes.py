"""Several sizes from one run: gates go through rising targets, and at each the network is cut.

Each target is a part of the run that starts with the gates and weights of the one before, ends with
settled gates, and leaves a checkpoint. From there the cut network has its own training
(`finetune_epochs`), and the gates go on to the next target.
"""

import json
import math
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from sparsereg.budgets.clock import Clock
from sparsereg.budgets.objective import new_objective
from sparsereg.budgets.runs import Runs, Train, changed, data_for, keep_earlier, new_network
from sparsereg.checkpoint import load, read_checkpoint
from sparsereg.commands.settings import to_plain
from sparsereg.compact import compact
from sparsereg.errors import printable
from sparsereg.export.formats import cut_file
from sparsereg.export.report import numbers_table
from sparsereg.files import write_atomically
from sparsereg.runs.pictures import draw_sizes


def train_sizes(cfg: DictConfig, train: Train) -> dict:
    """Train for each target of a rising list; the results of the last.

    OUTPUT_DIR/sizes.json, sizes.svg: a row each, and accuracy against milliseconds.
    """
    targets, rows = list(cfg.target_sparsity), []
    check_highest(cfg)
    runs, start = Runs(cfg, train), {}
    epochs = math.ceil(cfg.trainer.max_epochs / len(targets))
    for target in targets:
        own = start | {"target_sparsity": target, "trainer__max_epochs": epochs}
        folder, results = runs.run(finetune_epochs=0, finetune_lr=None, **own)
        last = folder / "last.ckpt"
        start = {"ckpt_path": str(last), "keep_gates": True}
        if cfg.finetune_epochs:
            folder, results = runs.cut_and_train_on(last, **own)
        file = cut_file(folder / Path(results["checkpoint"]).name)
        rows.append({"target": target, "file": str(file)} | results)
    measure(rows, Clock(**to_plain(cfg)["latency"]))
    folder = Path(cfg.output_dir)
    files = [row["file"] for row in rows]
    keep_earlier(folder / "sizes.json", lambda old: [r["file"] for r in old] == files, ".svg")
    write_atomically(folder / "sizes.json", json.dumps(rows, indent=1).encode())
    draw_sizes(rows, folder / "sizes.svg")
    show(rows, folder)
    return rows[-1]


def check_highest(cfg: DictConfig) -> None:
    """Raise UserError if the last target is out of reach, before those before it are trained."""
    data = data_for(cfg, read_checkpoint(cfg.ckpt_path) if cfg.ckpt_path else None)
    settings = to_plain(changed(cfg, {"target_sparsity": cfg.target_sparsity[-1]}))
    new_objective(settings, new_network(cfg, data), data.image_shape).check_reach()


def measure(rows: list[dict], clock: Clock) -> None:
    """Add the milliseconds of each cut network, in turns."""
    shape = tuple(read_checkpoint(rows[0]["file"])["sparsereg"]["data"]["image_shape"])
    times = clock.networks({row["file"]: compact(load(row["file"])) for row in rows}, shape)
    for row in rows:
        row |= {"ms": times[row["file"]], "batch": clock.batch, "backend": clock.backend}


def show(rows: list[dict], folder: Path) -> None:
    batch = rows[0]["batch"]
    table = numbers_table("target", "sparsity", "val, %", "test, %", "params", f"ms, batch {batch}")
    for row in rows:
        accuracies = (f"{100 * row[f'{split}_acc']:.2f}" for split in ("val", "test"))
        size = f"{row['params']:,}", f"{row['ms']:.3g}"
        table.add_row(f"{row['target']:g}", f"{row['sparsity']:.4f}", *accuracies, *size)
    Console().print(table)
    for row in rows:
        print(printable(f"{row['target']:g}: {row['file']}"))
    print(printable(f"wrote {folder}: sizes.json, sizes.svg"))
