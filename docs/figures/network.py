"""Draws docs/network.svg, the open channels of the network that REPORT is about, and prints the
table of docs/compact.md: `python docs/figures/network.py`."""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1]
REPORT = FOLDER / "results/demo/report.json"
COLORS = {"1x1": "#0072B2", "3x3": "#D55E00", "5x5": "#009E73", "max": "#CC79A7"}  # Okabe and Ito
STYLE = {"svg.hashsalt": "sparsereg", "font.family": "DejaVu Sans", "font.size": 9}


def draw(report: dict) -> Figure:
    """For each block a bar for each branch: its channels before, pale, and after, solid."""
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    ax = figure.subplots()
    blocks = list(dict.fromkeys(layer.split("/")[0] for layer in report["channels"]))
    for i, (branch, color) in enumerate(COLORS.items()):
        places = [block + 0.2 * (i - 1.5) for block in range(len(blocks))]
        before = [report["channels"][f"{block}/{branch}"] for block in blocks]
        after = [report["open_channels"][f"{block}/{branch}"] for block in blocks]
        ax.bar(places, before, 0.18, color=color, alpha=0.25)
        bars = ax.bar(places, after, 0.18, color=color, label=branch)
        ax.bar_label(bars, fontsize=7, padding=1)
    ax.set_xticks(range(len(blocks)), blocks)
    ax.set(ylabel="channels of the branch", title="before (pale) and after the cut (solid)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=4, loc="upper left")
    return figure


def table_rows(report: dict) -> list[str]:
    """The variants as rows of that table."""
    rows = []
    for name, row in report["variants"].items():
        cells = [name, *(f"{row[key]:,}" for key in ("params", "macs", "bytes"))]
        for batch in (1, 128):
            cells += [f"{row[f'ms_batch_{batch}']:.1f}", f"{row[f'speedup_batch_{batch}']:.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main(folder: Path = FOLDER) -> None:
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    with mpl.rc_context(STYLE):
        draw(report).savefig(folder / "network.svg", metadata={"Date": None})
    print(*table_rows(report), sep="\n")


if __name__ == "__main__":
    main()
