"""The figures of docs/budgets.md.

    python -m experiments.budgets drop --drops 0.5 --seeds 1 2 3 4 5 6 7 8 9 10
    python -m experiments.budgets drop --start RUN/best.ckpt -- SETTINGS
    python -m experiments.budgets speed --start RUN/best.ckpt -- SETTINGS
    python -m experiments.budgets sizes --start RUN/best.ckpt -- SETTINGS
    python -m experiments.budgets int8 --start RUN/best.ckpt -- SETTINGS

drop: what max_drop finds. speed: target_speedup beside target_macs with as many multiply-adds.
sizes: four in one run beside four runs. int8: from the dense checkpoint to compact.int8.onnx.
SETTINGS go to train.py: data, schedule, epochs; without them LeNet-5 and the digits. Without
--start a dense network is trained with them first. Runs lie in OUT/NAME/seed_N; started again, this
goes on where it was stopped. The rows are printed as Markdown.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from experiments.resumable import ROOT, checkpoint, finished, start, train
from sparsereg.errors import UserError

DIGITS = (
    *("data=digits", "trainer=cpu", "model=lenet5", "optimizer.lr=3e-3", "trainer.max_epochs=12"),
    *("scheduler=one_cycle", "finetune_epochs=4"),
)
SPEEDUPS = (1.5, 2)
SPARSITIES = (0.3, 0.5, 0.7, 0.9)
INT8 = 0.64  # sparsity of the network that is quantized: an eighth of the bytes then


class Budgets:
    """Runs for one seed."""

    def __init__(self, options: argparse.Namespace, seed: int, settings: list[str]):
        self.out, self.drops, self.seed = options.out, options.drops, f"seed_{seed}"
        self.settings = (*settings, f"seed={seed}")
        self.dense = options.start or self.train_dense()
        self.gated = (*self.settings, f"ckpt_path={self.dense}", "droprate_init=0.05")

    def folder(self, name: str) -> Path:
        return self.out / name / self.seed

    def train_dense(self) -> str:
        own = [s for s in self.settings if not s.startswith(("finetune_", "droprate_init"))]
        run = train(self.folder("dense"), *own, "without_using_gate=true")
        return str(ROOT / checkpoint(run))

    def several(self, name: str, file: str, *settings: str) -> dict | list:
        """What a command of several runs writes at its end, at once if it is there."""
        path = ROOT / self.folder(name) / file
        if not path.exists():
            print(f"training {self.folder(name)}", file=sys.stderr, flush=True)
            start(self.folder(name), *self.gated, *settings)
        return json.loads(path.read_text())

    def one(self, name: str, *settings: str) -> dict:
        """The results of a run; the accuracies of the training after its cut, if it has one."""
        train(self.folder(name), *self.gated, *settings)
        runs = [ROOT / run / "summary.json" for run in finished(self.folder(name))]
        return {key: value for run in runs for key, value in json.loads(run.read_text()).items()}

    def drop(self) -> None:
        for most in self.drops:
            settings = "cost=params", f"max_drop={most}"
            found = self.several(f"max_drop_{most}", "max_drop.json", *settings)
            chosen = found["chosen"]
            minutes = seconds(self.folder(f"max_drop_{most}")) / 60
            kept = "yes" if found["bound"] <= most else "no"
            drops = (f"{n:.2f}" for n in (found["drop"], found["bound"], chosen["test_drop"]))
            size = f"{chosen['sparsity']:.4f}", f"{chosen['params']:,}"
            row(self.seed, most, *size, *drops, kept, f"{minutes:.1f}")

    def speed(self) -> None:
        for speedup in SPEEDUPS:
            fast = self.one(f"speedup_{speedup}", f"target_speedup={speedup}")
            macs = f"target_macs={fast['macs']}"
            peer = self.one(f"macs_{speedup}", macs)
            dense, *times = self.measure(f"speedup_{speedup}", f"macs_{speedup}")
            row("dense", "", "", f"{dense:.3g}", 1, f"{fast['dense_macs']:,}", "", "")
            for name, results, ms in zip((f"{speedup} ×", macs), (fast, peer), times, strict=True):
                asked = [results.get(f"{what}_latency", 0) for what in ("target", "predicted")]
                accuracies = (f"{100 * results[f'{split}_acc']:.2f}" for split in ("val", "test"))
                shown = (f"{number:.3g}" if number else "" for number in asked)
                faster = f"{dense / ms:.2f}"
                row(name, *shown, f"{ms:.3g}", faster, f"{results['macs']:,}", *accuracies)

    def measure(self, *names: str) -> list[float]:
        """Milliseconds of the dense network and the cut ones, in turns."""
        from sparsereg.budgets.clock import Clock  # imports take seconds
        from sparsereg.checkpoint import load, read_checkpoint
        from sparsereg.compact import compact

        cut = [ROOT / checkpoint(train(self.folder(name))) for name in names]
        paths = [Path(self.dense), *cut]
        image_shape = tuple(read_checkpoint(paths[0])["sparsereg"]["data"]["image_shape"])
        nets = {str(path): compact(load(path)) for path in paths}
        return [*Clock(1, "onnxruntime", 1, "outputs/latency").networks(nets, image_shape).values()]

    def sizes(self) -> None:
        asked = "cost=params", f"target_sparsity=[{','.join(map(str, SPARSITIES))}]"
        together = self.several("sizes", "sizes.json", *asked)
        alone = [
            self.one(f"size_{target}", "cost=params", f"target_sparsity={target}")
            for target in SPARSITIES
        ]
        for target, own, other in zip(SPARSITIES, together, alone, strict=True):
            accuracies = (f"{100 * results['test_acc']:.2f}" for results in (own, other))
            row(target, f"{own['params']:,}", f"{own['ms']:.3g}", *accuracies)
        times = [
            seconds(self.folder(name)) for name in ("sizes", *map("size_{}".format, SPARSITIES))
        ]
        row("minutes", "", "", f"{times[0] / 60:.1f}", f"{sum(times[1:]) / 60:.1f}")

    def int8(self) -> None:
        asked = "cost=params", f"target_sparsity={INT8}"
        small = ROOT / checkpoint(train(self.folder("int8"), *self.gated, *asked))
        images = [setting for setting in self.settings if setting.startswith("data.root=")]
        for path in (Path(self.dense), small):
            command = [sys.executable, "compact.py", f"ckpt_path={path}", "int8=true", *images]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            report = json.loads(
                (path.with_name(f"{path.stem}_compact") / "report.json").read_text()
            )
            for name, file in report["int8"]["files"].items():
                accuracies = (f"{100 * file[f'{split}_acc']:.2f}" for split in ("val", "test"))
                times = (f"{file[f'ms_batch_{batch}']:.3g}" for batch in (1, 128))
                name = f"{'cut' if path == small else 'dense'}, {name}"
                row(name, *accuracies, f"{file['bytes']:,}", *times)


def seconds(folder: Path) -> float:
    """Of training, in all runs of a folder."""
    summaries = (ROOT / folder).glob("lightning_logs/version_*/summary.json")
    return sum(json.loads(path.read_text())["train_seconds"] for path in summaries)


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The figures of docs/budgets.md.")
    parser.add_argument("figure", choices=("drop", "speed", "sizes", "int8"))
    parser.add_argument("--start", help="checkpoint of the dense network")
    parser.add_argument("--drops", nargs="+", type=float, default=[0.5, 1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--out", type=Path, default=Path("outputs/budgets"), help="below here")
    own, settings = arguments, list(DIGITS)
    if "--" in arguments:
        own, settings = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    options = parser.parse_args(own)
    for seed in options.seeds:
        try:
            getattr(Budgets(options, seed, settings), options.figure)()
        except UserError as error:
            print(f"error: seed {seed}: {error}", file=sys.stderr, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
