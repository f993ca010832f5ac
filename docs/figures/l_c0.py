"""Draws docs/l_c0.svg: how L_C0 falls in runs with gates from scratch, and where the published ones
ended.

    python -m docs.figures.l_c0 outputs/table/cpu    # takes the curves of the runs there first
    python -m docs.figures.l_c0                      # from those kept in docs/results/scratch.csv
"""

import csv
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from sparsereg.runs.find import find_runs
from sparsereg.runs.pictures import COLORS, STYLE, new_picture, read_csv

DOCS = Path(__file__).parents[1]
CURVES = DOCS / "results" / "scratch.csv"
PUBLISHED = {0.25: 0.8283, 0.5: 0.5902, 1.0: 0.3151}  # λ: L_C0 after 180 epochs


def keep_curves(root: Path, file: Path) -> None:
    """Write (lambda_l0, step, L_C0) of the finished runs ROOT/scratch_λ."""
    rows = []
    for folder in sorted(root.glob("scratch_*")):
        for run in find_runs([str(folder)]):
            if run.status != "finished":
                continue
            logged = [row for row in read_csv(run.folder / "metrics.csv") if row.get("L_C0")]
            weight = run.settings["lambda_l0"]
            rows += [(weight, row["step"], f"{float(row['L_C0']):.4f}") for row in logged]
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([("lambda_l0", "step", "L_C0"), *rows])


def draw(rows: list[dict[str, str]]) -> Figure:
    figure, ax = new_picture("step", "L_C0")
    last = max(int(row["step"]) for row in rows)
    for (weight, published), color in zip(PUBLISHED.items(), COLORS, strict=False):
        own = [row for row in rows if float(row["lambda_l0"]) == weight]
        steps, values = [int(row["step"]) for row in own], [float(row["L_C0"]) for row in own]
        ax.plot(steps, values, color=color, label=f"λ = {weight}")
        ax.plot(1.03 * last, published, "x", color=color, clip_on=False)
    ax.plot([], [], "x", color="black", label="published, 180 epochs")
    ax.set(ylim=(0, 1))
    ax.legend(frameon=False)
    return figure


def main(arguments: list[str], curves: Path = CURVES, picture: Path = DOCS / "l_c0.svg") -> None:
    for root in arguments:
        keep_curves(Path(root), curves)
    with mpl.rc_context(STYLE):
        draw(read_csv(curves)).savefig(picture, metadata={"Date": None})
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
