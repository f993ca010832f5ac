"""Draws docs/curves.svg from the runs in docs/results and prints the table of docs/short-runs.md:
`python docs/figures/curves.py`."""

import csv
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from omegaconf import OmegaConf

FOLDER = Path(__file__).parents[1]
COLORS = (
    "#767676",
    "#CC79A7",
    "#0072B2",
    "#D55E00",
    "#009E73",
)  # Okabe and Ito
STYLE = {"svg.hashsalt": "sparsereg", "font.family": "DejaVu Sans", "font.size": 9}
PANELS = {"L_C0": "L_C0", "val_acc": "validation accuracy", "sparsity": "sparsity"}


def read_curve(run: Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of one tag of a run's metrics.csv; empty if it was not logged."""
    with open(run / "metrics.csv", encoding="utf-8") as file:
        points = [
            (int(row["step"]), float(row[tag])) for row in csv.DictReader(file) if row.get(tag)
        ]
    return [step for step, _ in points], [value for _, value in points]


def draw(runs: list[Path]) -> Figure:
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    for ax, (tag, title) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        for run, color in zip(runs, COLORS, strict=False):
            steps, values = read_curve(run, tag)
            marker = "" if len(steps) > 20 else "o"
            if steps:
                ax.plot(
                    steps,
                    values,
                    marker=marker,
                    ms=3,
                    color=color,
                    label=run.name.replace("_", " "),
                )
        ax.set(title=title, xlabel="step")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[2].legend(frameon=False, loc="center right")
    return figure


def table_row(run: Path) -> str:
    """The run as a row of that table."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    epochs = OmegaConf.load(run / "config.yaml").trainer.max_epochs
    l_c0 = "" if summary["L_C0"] is None else f"{summary['L_C0']:.4f}"
    cells = [
        run.name.replace("_", " "),
        str(epochs),
        f"{summary['val_acc']:.2%}",
        f"{summary['test_acc']:.2%}",
        l_c0,
        f"{summary['sparsity']:.4f}",
        f"{summary['params']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def main(folder: Path = FOLDER) -> None:
    runs = sorted(path.parent for path in (FOLDER / "results").glob("*/summary.json"))
    with mpl.rc_context(STYLE):
        draw(runs).savefig(folder / "curves.svg", metadata={"Date": None})
    print(*map(table_row, runs), sep="\n")


if __name__ == "__main__":
    main()
