"""Trains the rows of docs/results.md: the published table, the same network by the modern recipe,
and what each part of that recipe brings.

    python -m experiments.table published modern ablation --seeds 1 2 3 --jobs 8 -- trainer=gpu
    python -m experiments.table published --schedule short -- data=image_folder data.root=PATH

Runs lie in outputs/table/SCHEDULE/PART/ROW/seed_N; those that have finished are not repeated. Words
after `--` are settings of train.py for all of them. `python report.py` makes the table.
"""

import argparse
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
SPARSITIES = (0.06, 0.10, 0.22, 0.39, 0.55, 0.64, 0.815)  # of the published rows
MODERN = ("experiment=no_l0", "recipe=modern")
VARIANTS = {  # the modern recipe with one part replaced by the published one, or left out; or added
    "all": (),
    "adamw": ("optimizer=adamw", "optimizer.lr=3e-3", "optimizer.weight_decay=1e-4"),
    "multistep": ("scheduler=multistep",),
    "stretched_crops": ("data.crop_padding=0", "data.crop_scale=[0.8,1.0]"),
    "no_smoothing": ("loss.label_smoothing=0.0",),
    "no_average": ("callbacks=default",),
    "cutout": ("data.cutout=8",),
}
SCHEDULES = {  # settings of the dense network, the gates from scratch, new gates, the cut network
    "full": {"gates": ("trainer.max_epochs=60",)},
    "short": {  # what two CPU cores can do; gates need a rate of their own to close in so few steps
        "dense": ("trainer.max_epochs=4", "trainer.limit_train_batches=0.5"),
        "scratch": ("trainer.max_epochs=4", "trainer.limit_train_batches=0.25", "gate_lr=0.03"),
        "finetune": ("trainer.max_epochs=4", "trainer.limit_train_batches=0.25", "gate_lr=0.03"),
        "gates": ("trainer.max_epochs=3", "trainer.limit_train_batches=0.25"),
        "cut": ("trainer.max_epochs=3", "trainer.limit_train_batches=0.25"),
    },
}
SHORT_MILESTONES = {  # the published ones, as shares of the run
    "dense": ("scheduler.milestones=[2,3]",),
    "scratch": ("scheduler.milestones=[2,3]",),
    "finetune": ("scheduler.milestones=[1,2,3]",),
}


class Row:
    """One line of the table for one seed: trained once, whoever asks for it."""

    def __init__(self, part: str, name: str, stage: str, *settings: str):
        self.part, self.name, self.stage, self.settings = part, name, stage, settings

    def train(self, options: argparse.Namespace, seed: int, *more: str) -> Path:
        """Folder of the finished run; more settings come from the rows before it."""
        folder = Path("outputs/table", options.schedule, self.part, self.name, f"seed_{seed}")
        if found := finished(folder):
            return found
        settings = [*self.settings, *SCHEDULES[options.schedule].get(self.stage, ())]
        published_rates = self.part == "published" or "scheduler=multistep" in self.settings
        if options.schedule == "short" and published_rates:
            settings += SHORT_MILESTONES[self.stage]
        settings += [*more, f"seed={seed}", f"output_dir={folder}", *options.settings]
        print(f"training {folder}", flush=True)
        command = [sys.executable, "train.py", *settings, "trainer.enable_progress_bar=false"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{folder}: {done.stderr.strip() or done.stdout.strip()}")
        return finished(folder)


def finished(folder: Path) -> Path | None:
    """The newest finished run in a folder of runs."""
    runs = sorted((ROOT / folder).glob("lightning_logs/version_*/summary.json"))
    return runs[-1].parent.relative_to(ROOT) if runs else None


def checkpoint(run: Path, name: str = "best.ckpt") -> Path:
    return run / "checkpoints" / name


def published(pool: ThreadPoolExecutor, options: argparse.Namespace, seed: int) -> list[Future]:
    """The eight rows; four of them start from the first."""
    dense = Row("published", "no_l0", "dense", "experiment=no_l0")
    futures = [first := pool.submit(dense.train, options, seed)]

    def finetune(row: Row) -> None:
        row.train(options, seed, f"ckpt_path={checkpoint(first.result(), 'last.ckpt')}")

    for weight in (10, 20, 30, 50):
        settings = ("experiment=finetune_l0", f"lambda_l0={weight}.0")
        row = Row("published", f"finetune_l0_{weight}", "finetune", *settings)
        futures.append(pool.submit(finetune, row))
    for weight in (0.25, 0.5, 1.0):
        settings = ("experiment=scratch_l0", f"lambda_l0={weight}")
        row = Row("published", f"scratch_l0_{weight}", "scratch", *settings)
        futures.append(pool.submit(row.train, options, seed))
    return futures


def modern(pool: ThreadPoolExecutor, options: argparse.Namespace, seed: int) -> list[Future]:
    """The dense network, and for each sparsity the gates that lead there, and the cut network."""
    futures = [first := pool.submit(Row("modern", "dense", "dense", *MODERN).train, options, seed)]

    def prune(sparsity: float) -> None:
        teacher = f"loss.teacher={checkpoint(first.result())}"
        settings = ("recipe=modern_gates", f"target_sparsity={sparsity}", "cost=params")
        gates = Row("modern", f"gates_{sparsity}", "gates", *settings, "droprate_init=0.05")
        run = gates.train(options, seed, f"ckpt_path={checkpoint(first.result())}", teacher)
        cut = Row("modern", f"cut_{sparsity}", "cut", "recipe=modern", "without_using_gate=true")
        cut.train(options, seed, f"ckpt_path={cut_network(checkpoint(run))}", teacher)

    return futures + [pool.submit(prune, sparsity) for sparsity in options.sparsities]


def cut_network(path: Path) -> Path:
    from sparsereg.export.formats import cut_file  # imports take seconds

    return cut_file(ROOT / path).relative_to(ROOT)


def ablation(pool: ThreadPoolExecutor, options: argparse.Namespace, seed: int) -> list[Future]:
    rows = [Row("ablation", name, "dense", *MODERN, *v) for name, v in VARIANTS.items()]
    return [pool.submit(row.train, options, seed) for row in rows]


def main(arguments: list[str]) -> int:
    parts = {"published": published, "modern": modern, "ablation": ablation}
    parser = argparse.ArgumentParser(description="Train the rows of docs/results.md.")
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--schedule", choices=SCHEDULES, default="full")
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    own, settings = arguments, []
    if "--" in arguments:
        own, settings = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    options = parser.parse_args(own, argparse.Namespace(settings=settings))
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [
            future
            for seed in options.seeds
            for part in options.parts
            for future in parts[part](pool, options, seed)
        ]
    failures = dict.fromkeys(str(error) for f in futures if (error := f.exception()))
    for failure in failures:  # the others have gone on
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
