"""Trains the rows of the GoogleNet table in docs/results.md.

    python -m experiments.table cpu                            # all of them, the telling ones first
    python -m experiments.table cpu params_0.64 --seeds 2 3    # one row, with what it starts from
    python -m experiments.table cpu params_0.64 --start models/googlenet_dense.pt    # not its own
    python -m experiments.table short params_0.64 magnitude_params_0.64 --seeds 1 --start FILE
    python -m experiments.table full -- trainer=gpu            # words after -- go to train.py

dense, params_S, macs_S: by the modern recipe; S of the parameters, or of the multiply-adds, goes.
From the dense network gates find the channels, with it as their teacher; the network that is left
is trained on. magnitude_params_S, random_params_S and so on: the dense network cut to that size
without gates (`experiments.peers`), trained for the epochs of gates and rest together. scratch_λ:
the published recipe, gates from the first step.

Runs lie in outputs/table/SCHEDULE/NAME/seed_N. Started again, this skips what has finished and goes
on with what was stopped.
"""

import argparse
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments import resumable
from experiments.resumable import ROOT, checkpoint, cut_network, is_finished, versions
from sparsereg.errors import UserError
from sparsereg.runs.pictures import read_csv

SIZES = ("params_0.64", "params_0.815", "params_0.39", "params_0.1", "macs_0.5")
PEERS = tuple(f"{peer}_{size}" for size in SIZES for peer in ("magnitude", "random"))
SCRATCH = ("scratch_0.25", "scratch_0.5", "scratch_1.0")
ROWS = ("dense", *SIZES, *PEERS, *SCRATCH)
MORE_SEEDS = ("dense", "params_0.64", "params_0.815")  # rows that get all seeds, others the first
MODERN = ("experiment=no_l0", "recipe=modern")
CUT = ("without_using_gate=true", "recipe=modern")
AFTER_CUT = "optimizer.lr=0.05"  # a quarter of the recipe's: better after gates and magnitude
IMAGES = 45_000  # in an epoch


@dataclass(frozen=True)
class Schedule:
    """Epochs of each stage."""

    dense: int
    gates: int
    cut: int
    scratch: int

    def of(self, row: str) -> float:
        """Epochs of a row from the dense network on, in steps of it: a teacher is a third more."""
        if row == "dense":
            return self.dense
        kind, *_, sparsity = row.split("_")
        if kind == "scratch":
            return self.scratch
        left = 4 / 3 - 0.75 * float(sparsity)  # multiply-adds go slower than parameters
        if kind in ("magnitude", "random"):
            return left * (self.gates + self.cut)
        return 4 / 3 * self.gates + left * self.cut


SCHEDULES = {
    "cpu": Schedule(40, 15, 25, 30),
    "short": Schedule(40, 2, 4, 6),  # to compare ways of choosing channels in an hour or two
    "full": Schedule(180, 60, 120, 180),
}


class Table:
    """Trains rows; a run that several rows need is trained once."""

    def __init__(self, name: str, settings: list[str], start: Path | None = None):
        self.epochs = SCHEDULES[name]
        self.folder = Path("outputs/table", name)
        self.settings = settings
        self.start = start

    def is_finished(self, row: str, seed: int) -> bool:
        return is_finished(self.folder / row / f"seed_{seed}")

    def row(self, row: str, seed: int) -> None:
        kind, _, size = row.partition("_")
        if kind == "scratch":
            self.scratch(size, seed)
        elif kind in ("magnitude", "random"):
            self.peer(kind, size, seed)
        elif kind == "dense":
            self.dense(seed)
        else:
            self.gates_and_rest(row, seed)

    def dense(self, seed: int) -> Path:
        """Checkpoint of the dense network."""
        epochs = f"trainer.max_epochs={self.epochs.dense}"
        return self.start or self.train("dense", seed, *MODERN, epochs)

    def gates_and_rest(self, size: str, seed: int) -> None:
        cost, sparsity = size.split("_")
        start = self.dense(seed)
        target = (f"cost={cost}", f"target_sparsity={sparsity}", "droprate_init=0.05")
        given = (f"ckpt_path={start}", f"loss.teacher={start}")
        epochs = f"trainer.max_epochs={self.epochs.gates}"
        gated = self.train(f"gates_{size}", seed, "recipe=modern_gates", *target, *given, epochs)
        self.train_on(size, seed, cut_network(gated), start, self.epochs.cut)

    def peer(self, method: str, size: str, seed: int) -> None:
        cost, sparsity = size.split("_")
        start = self.dense(seed)
        cut = self.folder / f"{method}_{size}" / f"seed_{seed}" / "compact.pt"
        if not (ROOT / cut).exists():
            cut_peer(method, start, cost, float(sparsity), seed, cut)
        epochs = self.epochs.gates + self.epochs.cut
        self.train_on(f"{method}_{size}", seed, cut, start, epochs)

    def train_on(self, name: str, seed: int, cut: Path, teacher: Path, epochs: int) -> None:
        given = (f"ckpt_path={cut}", f"loss.teacher={teacher}", f"trainer.max_epochs={epochs}")
        self.train(name, seed, *CUT, AFTER_CUT, *given)

    def scratch(self, weight: str, seed: int) -> None:
        epochs = self.epochs.scratch
        milestones = [round(epochs * share / 180) for share in (100, 150)]
        schedule = (f"trainer.max_epochs={epochs}", f"scheduler.milestones={milestones}")
        settings = ("experiment=scratch_l0", f"lambda_l0={weight}", *schedule)
        self.train(f"scratch_{weight}", seed, *settings)

    def train(self, name: str, seed: int, *settings: str) -> Path:
        """The best checkpoint of the finished run."""
        folder = self.folder / name / f"seed_{seed}"
        return checkpoint(resumable.train(folder, *settings, f"seed={seed}", *self.settings))


def cut_peer(method: str, start: Path, cost: str, sparsity: float, seed: int, file: Path) -> None:
    from experiments.peers import cut_peer  # imports take seconds

    cut_peer(method, ROOT / start, cost, sparsity, seed, ROOT / file)


def images_per_second(settings: list[str]) -> float:
    """Of a dense training step on this machine, over a few of them."""
    folder = Path(f"outputs/table/rate_{os.getpid()}")  # tables are trained side by side
    few = [f"trainer.limit_{split}_batches={n}" for split, n in (("train", 24), ("val", 1))]
    few += ["trainer.limit_test_batches=1", "trainer.max_epochs=1"]
    resumable.start(folder, *MODERN, *settings, *few)
    [run] = versions(folder)
    [rate] = [row["samples/s"] for row in read_csv(ROOT / run / "metrics.csv") if row["samples/s"]]
    shutil.rmtree(ROOT / folder)
    return float(rate)


def plan(rows: list[str], seeds: list[int]) -> list[tuple[str, int]]:
    """(row, seed) in the order of training: every row once, then more seeds where they count."""
    if not set(rows) <= {"dense", *SCRATCH}:
        rows = list(dict.fromkeys(["dense", *rows]))  # they start from it
    chosen = rows or [row for row in ROWS if row not in SCRATCH]
    more = rows or MORE_SEEDS
    last = [] if rows else [(row, seeds[0]) for row in SCRATCH]
    return (
        [(row, seeds[0]) for row in chosen]
        + [(row, seed) for seed in seeds[1:] for row in more]
        + last
    )


def hours(table: Table, left: list[tuple[str, int]]) -> float:
    """How long the rows take here, from the rate of a few steps."""
    epochs = sum(table.epochs.of(row) for row, _ in left)
    return epochs * IMAGES / images_per_second(table.settings) / 3600


def train_all(table: Table, planned: list[tuple[str, int]]) -> int:
    """Train what is not finished yet, whatever fails on the way; the exit code."""
    left = [row for row in planned if not table.is_finished(*row)]
    if left:
        print(f"{len(left)} of {len(planned)} rows to train: {hours(table, left):.1f} hours")
    failures = []
    for row, seed in left:
        try:
            table.row(row, seed)
        except UserError as error:  # the others go on
            print(f"error: {row}, seed {seed}: {error}", file=sys.stderr, flush=True)
            failures.append(row)
    return 1 if failures else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Train the rows of the GoogleNet table.")
    parser.add_argument("schedule", choices=SCHEDULES)
    parser.add_argument("rows", nargs="*", help=f"all, or some of: {', '.join(ROWS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--start", type=Path, help="a trained dense network, for all seeds")
    own, settings = arguments, []
    if "--" in arguments:
        own, settings = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    options = parser.parse_args(own)
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if options.start and "dense" in options.rows:
        parser.error("the row dense is what --start gives: leave one of them out")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the run that it waits for, too
    planned = plan(options.rows, options.seeds)
    if options.start:
        planned = [(row, seed) for row, seed in planned if row != "dense"]
    return train_all(Table(options.schedule, settings, options.start), planned)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
