"""The tables of the page: what differs first, then the results; what is the same stands above."""

from collections.abc import Iterable
from html import escape
from typing import Any

from sparsereg.runs.table import (
    AFTER,
    BEFORE,
    Row,
    constant_settings,
    differing_settings,
    results_of,
    setting_text,
)

NARROW = ("test, %", "sparsity", "params")  # the results that a telephone shows


def by_network(rows: list[Row]) -> dict[str, dict[int, Row]]:
    """{network on data set: {number: row}}: accuracies of different ones do not compare."""
    groups: dict[str, dict[int, Row]] = {}
    for number, row in enumerate(rows, 1):
        data = row.settings.get("data.name") or row.settings.get("data", "")
        name = f"{setting_text(row.settings.get('model', ''))} on {setting_text(data)}"
        groups.setdefault(name, {})[number] = row
    return groups


def html_table(rows: dict[int, Row]) -> str:
    """A row for each configuration, with its number in the pictures and in the terminal."""
    keys = differing_settings(list(rows.values()))
    (headings, *cells), lines = results_of(list(rows.values())), []
    wide = ["" if heading in NARROW else ' class="wide"' for heading in headings]
    head = "".join(f"<th{w}>{escape(h)}</th>" for h, w in zip(headings, wide, strict=True))
    for (number, row), results in zip(rows.items(), cells, strict=True):
        what = shown((key, row.settings.get(key)) for key in keys)
        own = "".join(f"<td{w}>{escape(r)}</td>" for r, w in zip(results, wide, strict=True))
        lines.append(
            f'<tr id="row-{number}"><th><a href="#row-{number}">{number}</a></th>'
            f'<td><span class="what">{what}</span>'
            f'<span class="file wide">{escape(row.checkpoint())}</span></td>{own}</tr>'
        )
    title = "<tr><th></th><th>what differs<span class=wide>, and the checkpoint</span></th>"
    parts = [constants(list(rows.values())), "<table>", f"{title}{head}</tr>", *lines, "</table>"]
    return "\n".join(parts)


def constants(rows: list[Row]) -> str:
    """The settings that all rows share: those one asks for first, the others folded."""
    same = constant_settings(rows)
    first = {key: same.pop(key) for key in (*BEFORE, *AFTER) if key in same}
    parts = [f"<p>The same in all rows: {shown(first.items())}</p>"] if first else []
    if same:
        title = f"{len(same)} more settings that are the same"
        parts.append(f"<details><summary>{title}</summary><p>{shown(same.items())}</p></details>")
    return "\n".join(parts)


def shown(settings: Iterable[tuple[str, Any]]) -> str:
    texts = ((key, setting_text(value)) for key, value in settings)
    return " · ".join(f"{escape(key)}={escape(text)}" for key, text in texts if text)
