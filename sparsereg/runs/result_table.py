"""A table of results for readers: own rows and published ones together, the largest network first.

What a row is called and which runs it is made of stands in a list (`docs/results/notes.yaml`):

    - network: dense
      runs: googlenet_cpu/dense/*          RECORD/NAME OF A RUN, with * for its seeds
      epochs: 40
      dense: true                          points are counted from here, in the rows that follow
    - network: gates, 0.64 of the parameters
      runs: googlenet_cpu/params_0.64/*
      epochs: 40 + 15 + 25                 of all stages
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import sqrt

from sparsereg.runs.records import Run
from sparsereg.runs.table import Row

HEADINGS = [
    *("network and how", "test, %", "points against dense", "parameters", "MACs", "× faster"),
    *("epochs", "source"),
]
# Student's t, 97.5 %, for 2 to 10 runs: half the width of a 95 % interval is t · sd / √n
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
SPREADS = ("sd", "interval")


@dataclass
class Result:
    """One row: the runs it is made of, and what is said of them."""

    network: str
    epochs: str
    record: str
    runs: Row
    dense: "Result | None"

    @property
    def test(self) -> float:
        """Mean test accuracy in percent."""
        return 100 * self.runs.mean_sd("test_acc")[0]


def find_results(rows: list[dict], runs: dict[str, Run]) -> tuple[list[Result], list[str]]:
    """The rows that there are runs of, and the names of the others.

    Args:
        rows: the list above.
        runs: by RECORD/NAME.
    """
    found, missing, dense = [], [], None
    for row in rows:
        names = [name for name in runs if fnmatchcase(name, row["runs"])]
        if not names:
            missing.append(row["network"])
            continue
        own, record = Row([runs[name] for name in names]), names[0].partition("/")[0]
        is_dense = row.get("dense", False)
        found.append(
            Result(row["network"], str(row["epochs"]), record, own, None if is_dense else dense)
        )
        dense = found[-1] if is_dense else dense
    return found, missing


def result_table(
    results: list[Result], published: list[dict[str, str]], spread: str
) -> list[list[str]]:
    """Headings, then the cells of each row.

    Args:
        results: own rows.
        published: rows of published.csv, whose columns have the headings' order.
        spread: what ± means: `sd`, the standard deviation, or `interval`, half the 95 % interval.
    """
    rows = [
        (result.runs.mean_sd("sparsity")[0], 0, own_cells(result, spread)) for result in results
    ]
    rows += [(float(row["sparsity"]), 1, published_cells(row)) for row in published]
    return [HEADINGS, *(cells for *_, cells in sorted(rows, key=lambda row: row[:2]))]


def own_cells(result: Result, spread: str) -> list[str]:
    faster, _ = result.runs.mean_sd("speedup_batch_128")
    return [
        result.network,
        accuracy([100 * run.results["test_acc"] for run in result.runs.runs], spread),
        "" if result.dense is None else f"{result.test - result.dense.test:+.2f}",
        size(result.runs, "params"),
        size(result.runs, "macs"),
        "" if faster is None else f"{faster:.2f}",
        result.epochs,
        f"[{result.record}.csv]({{folder}}/{result.record}.csv)",
    ]


def accuracy(values: Sequence[float], spread: str) -> str:
    """Mean, ± spread, and how many runs."""
    mean, n = f"{statistics.fmean(values):.2f}", len(values)
    if n == 1:
        return f"{mean} (1 seed)"
    sd = statistics.stdev(values)
    around = sd if spread == "sd" else T[n - 2] * sd / sqrt(n)
    return f"{mean} ± {around:.2f} ({n} seeds)"


def size(runs: Row, name: str) -> str:
    """Mean of a count, and its share of the dense network's."""
    mean, whole = runs.mean_sd(name)[0], runs.mean_sd(f"dense_{name}")[0]
    if mean == whole:
        return f"{mean:,.0f}"
    share = mean / whole
    return f"{mean:,.0f} ({share:.{1 if share >= 0.01 else 2}%})"


def published_cells(row: dict[str, str]) -> list[str]:
    """In italics, so that nobody takes them for own measurements."""
    shown = ("network", "test", "points", "params", "macs", "faster", "epochs", "source")
    cells = [row[key] for key in shown]
    return [f"*{cells[0]}*", *cells[1:]]
