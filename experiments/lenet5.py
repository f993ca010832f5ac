"""Trains the rows of the LeNet-5 table in docs/results.md: Louizos et al. 2018 (arXiv 1712.01312),
table 1, on MNIST.

    python -m experiments.lenet5                        # all rows, five seeds each
    python -m experiments.lenet5 paper best --seeds 1 2 --jobs 2 -- trainer.precision=bf16-mixed

Runs lie in outputs/lenet5/ROW/seed_N. Started again, the command skips those that have finished,
and the others go on from their last epoch. Words after `--` are settings of train.py for all.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments import resumable
from experiments.resumable import checkpoint, cut_network

ROWS = ("dense", "paper", "paper_layers", "target", "target_layers", "best")


def train(row: str, seed: int, *settings: str) -> Path:
    """Folder of the finished run."""
    return resumable.train(Path("outputs/lenet5", row, f"seed_{seed}"), *settings, f"seed={seed}")


def train_row(row: str, seed: int, settings: list[str]) -> None:
    """One row of the table; the best one is a dense network, gates from it, and what is left."""
    if row != "best":
        train(row, seed, f"experiment=lenet5_{row}", *settings)
        return
    first = train("teacher", seed, "experiment=lenet5_teacher", *settings)
    teacher = f"loss.teacher={checkpoint(first)}"
    start = f"ckpt_path={checkpoint(first)}"
    gates = train("best_gates", seed, "experiment=lenet5_best", start, teacher, *settings)
    cut = f"ckpt_path={cut_network(checkpoint(gates, 'last'))}"
    train("best", seed, "experiment=lenet5_best_cut", cut, teacher, *settings)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Train the rows of the LeNet-5 table.")
    parser.add_argument("rows", nargs="*", default=ROWS, metavar="row", help=", ".join(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    own, settings = arguments, []
    if "--" in arguments:
        own, settings = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    options = parser.parse_args(own)
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"unknown row {', '.join(unknown)}: there are {', '.join(ROWS)}")
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [
            pool.submit(train_row, row, seed, settings)
            for seed in options.seeds
            for row in options.rows
        ]
    failures = dict.fromkeys(str(error) for f in futures if (error := f.exception()))
    for failure in failures:  # the others have gone on
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
