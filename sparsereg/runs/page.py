"""One HTML page of many runs: the table and the pictures, in a single file that needs no other."""

import base64
import io
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure

from sparsereg.errors import printable
from sparsereg.runs.pictures import STYLE, accuracy_picture, run_pictures
from sparsereg.runs.records import Run
from sparsereg.runs.table import Row, differing_settings, setting_text, settings_text, table

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runs</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 1rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #8886; }
th, td { text-align: left; white-space: nowrap; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 0 1 auto; }
img { width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption, .note { font-size: 0.85rem; opacity: 0.8; }
li { overflow-wrap: anywhere; }
</style>
</head>
<body>
"""


def page(runs: list[Run], rows: list[Row], pictures: int) -> str:
    """The page, with pictures of the first so many finished runs that have gates."""
    counts = {s: sum(r.status == s for r in runs) for s in ("finished", "unfinished", "broken")}
    parts = [
        HEAD + "<h1>Runs</h1>",
        f"<p>{', '.join(f'{n} {status}' for status, n in counts.items())}. Runs that differ in "
        "their seed alone make one row: mean ± standard deviation; the checkpoint is that of the "
        "highest validation accuracy.</p>",
        html_table(table(rows)),
    ]
    with mpl.rc_context(STYLE):
        if pictures and rows:
            parts += ["<h2>Accuracy and sparsity</h2>", accuracy_figures(rows)]
        drawn, problems = pictures_of_runs(runs, pictures, differing_settings(rows))
    noted = [f"{run.name} ({run.status}): {run.why}" for run in runs if run.why] + problems
    if noted:
        items = "".join(f"<li>{escape(note)}</li>" for note in noted)
        parts += ["<h2>Unfinished, broken, incomplete</h2>", f"<ul>{items}</ul>"]
    return "\n".join([*parts, *drawn, "</body>\n</html>\n"])


def html_table(cells: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in cells[0])
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in cells[1:]]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def accuracy_figures(rows: list[Row]) -> str:
    """One for each data set: accuracies of different ones do not compare."""
    by_data: dict[str, list[Row]] = {}
    for row in rows:
        data = setting_text(row.settings.get("data.name") or row.settings.get("data", ""))
        by_data.setdefault(data, []).append(row)
    return side_by_side(
        {
            f"{data}: test accuracy against sparsity; bars: standard deviation over "
            "seeds": accuracy_picture({"runs": rows})
            for data, rows in by_data.items()
        }
    )


def pictures_of_runs(runs: list[Run], limit: int, keys: list[str]) -> tuple[list[str], list[str]]:
    """The section of the first `limit` runs, and what could not be drawn."""
    gated = [run for run in runs if run.folder and run.open_channels]
    parts, problems = [], []
    for run in gated[:limit]:
        try:
            pictures = side_by_side(run_pictures(run))
        except Exception as error:  # its curves may hold anything: the others are drawn
            problems.append(printable(f"{run.name}: no pictures: {error}"))
            continue
        note = escape(settings_text(run.settings, keys))
        parts += [f"<h3>{escape(run.name)}</h3>", f'<p class="note">{note}</p>', pictures]
    if parts:
        shown = f"the first {limit} of {len(gated)}" if limit < len(gated) else f"all {len(gated)}"
        parts.insert(0, f"<h2>Runs with gates, {shown}</h2>")
    return parts, problems


def side_by_side(pictures: dict[str, Figure]) -> str:
    figures = (html_figure(figure, caption) for caption, figure in pictures.items())
    return f'<div class="pictures">{"".join(figures)}</div>'


def html_figure(figure: Figure, caption: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=144)
    image = base64.b64encode(content.getvalue()).decode()
    width = f"{figure.get_figwidth() * 5.4}rem"
    return (
        f'<figure style="flex-basis: {width}">'
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
