"""Draws docs/targets.svg from the runs in docs/results/targets and prints the tables of
docs/targets.md, of them and of the digits' in docs/results/targets_digits:
`python docs/figures/targets.py`."""

import json
from itertools import product
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from docs.figures.curves import COLORS, STYLE, read_curve

FOLDER = Path(__file__).parents[1]
RESULTS = FOLDER / "results"


def config(run: Path) -> DictConfig:
    return OmegaConf.load(run / "config.yaml")


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def draw(runs: list[Path]) -> Figure:
    """Sparsity of parameters, expected (line) and actual (dots), and λ over the epochs."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    sparsity, multiplier = figure.subplots(1, 2)
    for run, color in zip(runs, COLORS[1:], strict=False):
        target = config(run).target_sparsity
        steps, actual = read_curve(run, "actual_sparsity/params")
        epoch = (steps[-1] + 1) / len(steps)
        for tag, ax in (("expected_sparsity/params", sparsity), ("lambda_l0", multiplier)):
            at, values = read_curve(run, tag)
            ax.plot([step / epoch for step in at], values, color=color, lw=1.2, label=f"{target}")
        sparsity.plot([(step + 1) / epoch for step in steps], actual, "o", ms=4, color=color)
        sparsity.axhline(target, color=color, lw=0.6, ls=":")
    sparsity.set(title="sparsity: expected (line), actual (dots)", ylabel="sparsity of parameters")
    sparsity.set(xlabel="epoch", ylim=(-0.02, 1))
    multiplier.set(title="multiplier λ", ylabel="λ", xlabel="epoch")
    multiplier.legend(frameon=False, title="target")
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def table_row(run: Path) -> str:
    """What was asked for, and what the network has that was cut."""
    cfg, result = config(run), summary(run)
    target = cfg.get("target_sparsity")
    asked = f"λ = {cfg.lambda_l0:g}" if target is None else f"{target} of {cfg.cost}"
    if cfg.without_using_gate:
        asked = "no gates"
    start = (
        "scratch" if cfg.ckpt_path is None else "kept gates" if cfg.get("keep_gates") else "trained"
    )
    cells = [
        asked,
        start,
        f"{result['sparsity']:.4f}",
        f"{1 - result['macs'] / result['dense_macs']:.4f}",
        f"{result['params']:,}",
        f"{result['macs']:,}",
        f"{result['val_acc']:.2%}",
        f"{result['test_acc']:.2%}",
    ]
    return f"| {' | '.join(cells)} |"


def digits_rows(folder: Path) -> list[str]:
    """For each target what was reached, and the test accuracy, by cost and start; folders of runs
    with ten epochs end in _ten."""
    found = {}
    for path in folder.glob("*/*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        start, _, ten = path.parent.name.partition("_")
        row = f"{result['target_sparsity']}{', ten epochs' if ten else ''}"
        cell = f"{result['reached_sparsity']:.4f} ({result['test_acc']:.1%})"
        found.setdefault(row, {})[start, result["cost"]] = cell
    columns = list(product(("trained", "scratch"), ("params", "macs")))
    return [
        f"| {row} | {' | '.join(cells.get(column, '') for column in columns)} |"
        for row, cells in sorted(found.items())
    ]


def main(folder: Path = FOLDER) -> None:
    runs = [path.parent for path in (RESULTS / "targets").glob("*/summary.json")]
    runs.sort(key=lambda run: (summary(run)["sparsity"], run.name))
    drawn = [run for run in runs if run.name.startswith("params_")]
    with mpl.rc_context(STYLE):
        draw(drawn).savefig(folder / "targets.svg", metadata={"Date": None})
    print(*map(table_row, runs), *digits_rows(RESULTS / "targets_digits"), sep="\n")


if __name__ == "__main__":
    main()
