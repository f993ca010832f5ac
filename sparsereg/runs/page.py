"""One HTML page of many runs: the table and the pictures, in a single file that needs no other."""

import base64
import io
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure

from sparsereg.errors import printable
from sparsereg.runs.html_table import by_network, html_table
from sparsereg.runs.pictures import (
    STYLE,
    accuracy_picture,
    like_published,
    number_points,
    run_pictures,
)
from sparsereg.runs.records import Run
from sparsereg.runs.table import Row, differing_settings, settings_text

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runs</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 1rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #8886; }
th, td { text-align: left; vertical-align: top; }
.what, .file, details p { overflow-wrap: anywhere; }
.what, .file { display: block; min-width: 9rem; }
.file { font-size: 0.88em; opacity: 0.7; }
tr:target { background: #fd06; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 0 1 auto; }
img, svg { width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption, .note, summary, details p { font-size: 0.85rem; opacity: 0.8; }
li { overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  th, td { padding: 0.3rem; }
  .wide { display: none; }
  .what { display: -webkit-box; -webkit-box-orient: vertical; overflow: hidden; }
  tr:not(:target) .what { -webkit-line-clamp: 4; }
}
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { max-width: none; margin: 0; font-size: 9pt; }
  table { font-size: 7pt; }
  th, td { padding: 0.15rem 0.3rem; }
  .what, .file { min-width: 30rem; }
  a { color: inherit; text-decoration: none; }
  tr, figure, h3 { break-inside: avoid; }
  h2, h3, .note { break-after: avoid; }
  figure { max-width: 45%; }
}
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
    ]
    with mpl.rc_context(STYLE):
        for name, own in by_network(rows).items():
            parts.append(comparison(name, own, with_picture=pictures > 0))
        drawn, problems = pictures_of_runs(runs, pictures, differing_settings(rows))
    for status, noted in (
        ("unfinished", notes(runs, "unfinished")),
        ("broken or incomplete", notes(runs, "broken", "finished") + problems),
    ):
        if noted:
            items = "".join(f"<li>{escape(note)}</li>" for note in noted)
            title = f"{len(noted)} {status}: what is known of them"
            parts.append(f"<details><summary>{title}</summary><ul>{items}</ul></details>")
    return "\n".join([*parts, *drawn, "</body>\n</html>\n"])


def notes(runs: list[Run], *statuses: str) -> list[str]:
    return [f"{r.name} ({r.status}): {r.why}" for r in runs if r.why and r.status in statuses]


def comparison(name: str, rows: dict[int, Row], with_picture: bool) -> str:
    """One network on one data set, with a front of its own. A point alone is drawn where the
    published ones are beside it."""
    parts = [f"<h2>{escape(name)}</h2>", html_table(rows)]
    if with_picture and (len(rows) > 1 or any(map(like_published, rows.values()))):
        with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
            figure = accuracy_picture({"runs": list(rows.values())})
            number_points(figure, rows)
            caption = (
                f"{name}: test accuracy against sparsity; numbers: the row of the table; "
                "bars: standard deviation over seeds"
            )
            drawn = html_figure(figure, caption, as_svg=True)
        parts.append(f'<div class="pictures">{drawn}</div>')
    return "\n".join(parts)


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


def html_figure(figure: Figure, caption: str, as_svg: bool = False) -> str:
    """In a page: as a picture, or as SVG, whose points can lead somewhere."""
    content = io.BytesIO()
    if as_svg:
        figure.savefig(content, format="svg", metadata={"Date": None})
        drawn = content.getvalue().decode().partition("<svg")
        shown = f'<svg role="img" aria-label="{escape(caption)}"{drawn[2]}'
    else:
        figure.savefig(content, format="png", dpi=144)
        image = base64.b64encode(content.getvalue()).decode()
        shown = f'<img alt="{escape(caption)}" src="data:image/png;base64,{image}">'
    width = f"{figure.get_figwidth() * 5.4}rem"
    return (
        f'<figure style="flex-basis: {width}">{shown}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
