"""Pictures of runs: accuracy against sparsity of many, and how the gates of one have closed."""

import csv
import io
import math
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsereg.commands.overrides import CONFIG
from sparsereg.files import read_text
from sparsereg.runs.records import Run
from sparsereg.runs.table import Row

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {"svg.hashsalt": "sparsereg", "font.family": "DejaVu Sans", "font.size": 9}
PUBLISHED = CONFIG.parents[1] / "docs" / "results" / "published.csv"
PUBLISHED_MACS = 79_643_904  # of the dense network there, on one 32x32 image
CURVES = {"L_C0": (COLORS[0], ""), "sparsity": (COLORS[1], "o")}
OPENS = -math.log(11)  # ln α above which a gate is open


def accuracy_picture(series: dict[str, list[Row]]) -> Figure:
    """Test accuracy against sparsity of each series, all of them on one data set.

    Bars are the standard deviation over seeds. The line is the Pareto front of all series: the
    highest accuracy at so much sparsity or more. The published points are shown alone, and beside
    runs of the same network on images of the same size.
    """
    figure, ax = new_picture("sparsity (share of the parameters removed)", "test accuracy, %")
    figure.set_size_inches(6.4, 4.4)
    shown = []
    styles = zip(cycle(COLORS), cycle(MARKERS))
    for (name, rows), (color, marker) in zip(series.items(), styles, strict=False):
        x, x_sd = zip(*(row.mean_sd("sparsity") for row in rows), strict=True)
        y, y_sd = zip(*(percent(row.mean_sd("test_acc")) for row in rows), strict=True)
        style = {"fmt": marker, "ms": 5, "lw": 1, "color": color, "zorder": 3}
        shown.append(ax.errorbar(x, y, xerr=x_sd, yerr=y_sd, label=name, **style))
    rows = [row for rows in series.values() for row in rows]
    front = pareto_front((r.mean_sd("sparsity")[0], 100 * r.mean_sd("test_acc")[0]) for r in rows)
    style = {"drawstyle": "steps-pre", "color": "#767676", "lw": 1}
    shown += ax.plot(*zip(*front, strict=True), **style, label="Pareto front of these runs")
    if not rows or any(like_published(row) for row in rows):
        points = [row for row in read_csv(PUBLISHED) if row["table"] == "googlenet"]
        x, y = ([float(point[key]) for point in points] for key in ("sparsity", "test"))
        label = "published (sparsity counted differently)"
        shown += ax.plot(x, y, "x", color="black", label=label)
    figure.legend(handles=shown, frameon=False, fontsize=8, loc="outside upper left", ncols=2)
    return figure


def number_points(figure: Figure, rows: dict[int, Row]) -> None:
    """Write the number of its row at each point; in an SVG both lead to it."""
    [ax] = figure.axes
    for number, row in rows.items():
        place = row.mean_sd("sparsity")[0], 100 * row.mean_sd("test_acc")[0]
        link = f"#row-{number}"
        ax.scatter(*place, s=150, alpha=0, urls=[link], zorder=4)
        offset = {"xytext": (5, 4), "textcoords": "offset points", "zorder": 5}
        ax.annotate(str(number), place, fontsize=8, url=link, **offset)


def draw_sizes(rows: list[dict], file: Path) -> None:
    """Test accuracy against the measured milliseconds of several cut networks."""
    first = rows[0]
    figure, ax = new_picture(f"ms, batch {first['batch']}, {first['backend']}", "test accuracy, %")
    ax.plot([row["ms"] for row in rows], [100 * row["test_acc"] for row in rows], "o-")
    for row in rows:
        place = row["ms"], 100 * row["test_acc"]
        ax.annotate(f"{row['target']:g}", place, (4, 4), textcoords="offset points", fontsize=8)
    figure.savefig(file)


def percent(numbers: tuple[float, float]) -> tuple[float, float]:
    return 100 * numbers[0], 100 * numbers[1]


def like_published(row: Row) -> bool:
    """Is it the published network, on images of that size and with as many classes?"""
    return row.mean_sd("dense_macs")[0] == PUBLISHED_MACS


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (sparsity, accuracy) that no other point beats in both, the sparsest last."""
    front = []
    for sparsity, accuracy in sorted(points, reverse=True):
        if not front or accuracy > front[-1][1]:
            front.append((sparsity, accuracy))
    return front[::-1]


def run_pictures(run: Run) -> dict[str, Figure]:
    """Captions and pictures of what there is of a run, but for curves of a single point.

    Raises:
        OSError, ValueError, LookupError: one of its files is not what it should be.
    """
    pictures = {}
    if (file := run.folder / "metrics.csv").exists():
        metrics = read_csv(file)
        if any(sum(bool(row.get(tag)) for row in metrics) > 1 for tag in CURVES):
            pictures["L_C0 and sparsity"] = curves_picture(metrics)
    if run.open_channels:
        pictures["open channels at the end"] = channels_picture(run.open_channels)
    if (file := run.folder / "qz_loga.csv").exists() and len(counts := read_csv(file)) > 1:
        pictures["gates by ln α; open above the line"] = gates_picture(counts)
    return pictures


def curves_picture(metrics: list[dict[str, str]]) -> Figure:
    figure, ax = new_picture("step", "share")
    for tag, (color, marker) in CURVES.items():
        logged = [row for row in metrics if row.get(tag)]
        steps, values = [int(r["step"]) for r in logged], [float(r[tag]) for r in logged]
        ax.plot(steps, values, marker=marker, ms=3, color=color, label=tag)
    ax.set(ylim=(-0.02, 1.02))
    ax.legend(frameon=False)
    return figure


def channels_picture(layers: dict[str, int]) -> Figure:
    """For each block a bar for each branch; a layer that is no branch is a block of its own."""
    blocks = list(dict.fromkeys(name.partition("/")[0] for name in layers))
    branches = list(dict.fromkeys(name.partition("/")[2] for name in layers))
    figure, ax = new_picture("block", "open channels")
    width = 0.8 / len(branches)
    for i, (branch, color) in enumerate(zip(branches, cycle(COLORS), strict=False)):
        places = [b + width * (i - (len(branches) - 1) / 2) for b in range(len(blocks))]
        heights = [layers.get(f"{block}/{branch}".rstrip("/"), 0) for block in blocks]
        ax.bar(places, heights, 0.9 * width, color=color, label=branch)
    labels = [block.removeprefix("block") for block in blocks]
    ax.set_xticks(range(len(blocks)), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    if len(branches) > 1:
        ax.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return figure


def gates_picture(counts: list[dict[str, str]]) -> Figure:
    """A column for each epoch, a row for each bin of ln α, the share of gates as a colour."""
    figure, ax = new_picture("step", "ln α")
    lower = [float(edge) for edge in counts[0] if edge not in ("step", "-inf")]
    width = lower[1] - lower[0]
    edges = [lower[0] - width, *lower, lower[-1] + width]
    shares = [[int(n) for edge, n in row.items() if edge != "step"] for row in counts]
    shares = [[n / sum(row) for n in row] for row in shares]
    steps = [int(row["step"]) for row in counts]
    first = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else steps[0])
    mesh = ax.pcolormesh([first, *steps], edges, list(zip(*shares, strict=True)), cmap="cividis")
    ax.axhline(OPENS, color="white", lw=1, ls="--")
    figure.colorbar(mesh, label="share of the gates")
    return figure


def new_picture(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file.

    Raises:
        ValueError: there are none, or one has fewer cells than the first line.
    """
    rows, found = csv.DictReader(io.StringIO(read_text(path), newline="")), []
    for row in rows:
        if None in row.values():
            raise ValueError(f"{path.name}: line {rows.line_num} is cut off")
        found.append(row)
    if not found:
        raise ValueError(f"{path.name} has no rows")
    return found
