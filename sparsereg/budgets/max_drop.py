"""The smallest network that is at most so many points less accurate than its dense checkpoint.

Short runs probe sparsities: gates with the checkpoint as teacher, settled, cut, trained on a
little. Each is judged on the same validation images as the dense network (`paired`), and the next
halves what a monotone fit of these leaves open. The highest sparsity that keeps the accuracy is
trained at full length; if it misses then, the next lower one that a probe had kept. The test set
is read once, for the network that is chosen.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from sklearn.isotonic import IsotonicRegression

from sparsereg.budgets.paired import Drop, paired_drop, right
from sparsereg.budgets.runs import Runs, Train, data_for, keep_earlier, new_network
from sparsereg.checkpoint import check_classes, check_images, load, read_checkpoint
from sparsereg.errors import printable
from sparsereg.export.report import numbers_table
from sparsereg.files import write_atomically
from sparsereg.sparsity.cost import ExpectedCost

SHORTER = 4  # times: a probe, than the training at full length
FEW = 3  # images that may be lost; below, chance decides


class Trial(NamedTuple):
    """A run that was judged."""

    target: float
    kind: str  # probe or full
    drop: Drop
    checkpoint: Path
    results: dict


def train_smallest(cfg: DictConfig, train: Train) -> dict:
    """Find and train it; its results. OUTPUT_DIR/max_drop.json says how it was found."""
    search = Search(cfg, train)
    probes: list[Trial] = []
    while len(probes) < cfg.probes:
        target = next_target(probes, cfg.max_drop, search.highest)
        probes.append(search.trial("probe", target))
    full: list[Trial] = []
    for target in candidates(probes, cfg.max_drop):
        full.append(search.trial("full", target))
        if full[-1].drop.bound <= cfg.max_drop:
            break
    chosen = min(full, key=lambda trial: (trial.drop.bound > cfg.max_drop, trial.drop.bound))
    results = search.test(chosen)
    report(cfg, [*probes, *full], chosen, results, search.images)
    return results


class Search:
    """Trains networks of some sparsity, and compares them with the dense one."""

    def __init__(self, cfg: DictConfig, train: Train):
        self.cfg, checkpoint = cfg, read_checkpoint(cfg.ckpt_path)
        self.data = data_for(cfg, checkpoint)
        check_classes(checkpoint, self.data.classes)
        check_images(checkpoint, self.data.image_shape)
        self.dense = load(cfg.ckpt_path)
        self.before = right(self.dense, self.data, "val", cfg.flip_tta)
        self.images = len(self.before)
        self.runs = Runs(cfg, train, test=False)
        cost = ExpectedCost(new_network(cfg, self.data), self.data.image_shape)
        self.highest = cost.highest_sparsity(cfg.cost, cfg.min_open_channels)

    def trial(self, kind: str, target: float) -> Trial:
        """A probe, or a training at full length, judged on the validation images."""
        cfg, shorter = self.cfg, SHORTER if kind == "probe" else 1
        epochs = cfg.trainer.max_epochs
        if kind == "probe":
            epochs = cfg.probe_epochs or math.ceil(epochs / SHORTER)
        settings: dict[str, Any] = {
            "max_drop": None,
            "target_sparsity": target,
            "trainer__max_epochs": epochs,
            "loss__teacher": cfg.loss.teacher or cfg.ckpt_path,
        }
        folder, results = self.runs.run(finetune_epochs=0, finetune_lr=None, **settings)
        if cfg.finetune_epochs:
            settings["finetune_epochs"] = math.ceil(cfg.finetune_epochs / shorter)
            folder, results = self.runs.cut_and_train_on(folder / "last.ckpt", **settings)
        checkpoint = folder / Path(results["checkpoint"]).name
        after = right(load(checkpoint), self.data, "val", cfg.flip_tta)
        trial = Trial(target, kind, paired_drop(self.before, after), checkpoint, results)
        print(f"{kind}: sparsity {target:.4f}, {said(trial.drop)}", flush=True)
        return trial

    def test(self, chosen: Trial) -> dict:
        """The results of the chosen network, with those on the test set."""
        self.data.setup("test")
        nets = self.dense, load(chosen.checkpoint)
        before, after = (right(net, self.data, "test", self.cfg.flip_tta) for net in nets)
        drop = paired_drop(before, after)
        measured = {"test_acc": after.double().mean().item(), "test_drop": drop.drop}
        return chosen.results | measured | {"checkpoint": str(chosen.checkpoint)}


def monotone(probes: list[Trial]) -> dict[float, float]:
    """The bound of each target, as a fit that rises with it has it."""
    ordered = sorted(probes, key=lambda probe: probe.target)
    targets = [probe.target for probe in ordered]
    fit = IsotonicRegression().fit_transform(targets, [probe.drop.bound for probe in ordered])
    return dict(zip(targets, fit.tolist(), strict=True))


def next_target(probes: list[Trial], max_drop: float, highest: float) -> float:
    """Half of the way between the last target that is kept and the first that is not."""
    fit = monotone(probes) if probes else {}
    low = max((target for target, bound in fit.items() if bound <= max_drop), default=0.0)
    high = min((target for target, bound in fit.items() if bound > max_drop), default=highest)
    return round((low + high) / 2, 4)


def candidates(probes: list[Trial], max_drop: float) -> list[float]:
    """The targets to train at full length, in turn: those kept, the highest first; if there is
    none, the one that comes nearest."""
    kept = [target for target, bound in monotone(probes).items() if bound <= max_drop]
    nearest = min(probes, key=lambda probe: probe.drop.bound).target
    return sorted(kept, reverse=True) or [nearest]


def said(drop: Drop) -> str:
    return f"drop {drop.drop:.2f} points, with 95 % confidence below {drop.bound:.2f}"


def report(cfg: DictConfig, trials: list[Trial], chosen: Trial, results: dict, images: int) -> None:
    """The table of trials, and in the last lines what was chosen, and why."""
    table = numbers_table("run", "sparsity", "parameters", "drop", "bound", "kept")
    for trial in trials:
        kept = "yes" if trial.drop.bound <= cfg.max_drop else "no"
        numbers = (f"{number:.2f}" for number in trial.drop)
        size = f"{trial.target:.4f}", f"{trial.results['params']:,}"
        table.add_row(trial.kind, *size, *numbers, kept)
    Console().print(table)
    rows = [
        t._asdict() | {"drop": t.drop._asdict(), "checkpoint": str(t.checkpoint)} for t in trials
    ]
    found = {"max_drop": cfg.max_drop, "images": images, "trials": rows, "chosen": results}
    found |= {"target": chosen.target, **chosen.drop._asdict()}
    write_found(Path(cfg.output_dir) / "max_drop.json", found)
    if images * cfg.max_drop / 100 < FEW:
        print(
            f"{images} validation images are few for max_drop={cfg.max_drop}: one is "
            f"{100 / images:.2f} points"
        )
    if chosen.drop.bound > cfg.max_drop:
        print(
            f"no size keeps max_drop={cfg.max_drop} with 95 % confidence: of {len(trials)} runs "
            "this one comes nearest; longer probes (probe_epochs) or training may find one"
        )
    print(printable(f"chosen: {results['checkpoint']}"))
    print(f"sparsity {results['sparsity']:.4f}, {results['params']:,} parameters")
    print(f"validation: {said(chosen.drop)}; test: drop {results['test_drop']:.2f}", flush=True)


def write_found(file: Path, found: dict) -> None:
    """A file of the same search is written anew, that of another one is kept."""

    def search(content: dict) -> tuple:
        return content["max_drop"], [trial["checkpoint"] for trial in content["trials"]]

    keep_earlier(file, lambda earlier: search(earlier) == search(found))
    write_atomically(file, json.dumps(found, indent=1).encode())
