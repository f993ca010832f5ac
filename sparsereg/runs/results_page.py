"""A page of results from committed records, docs/results.md.

The folder holds CSV files that report.py has written (`sparsereg.runs.records`), published.csv, the
rows to compare with, and notes.yaml, the words:

    intro: …                     below the title
    sections:
      NAME:                      in the order of the page
        title: …
        notes: …                 machine, data, seeds, commands
        rows: […]                see `sparsereg.runs.result_table`
        spread: sd               or interval

    pages:                       the same for pages of their own beside the folder, NAME.md
      NAME: …

A section with `rows` takes runs of any record, and the published rows that have its NAME. One
without is the record NAME.csv itself, its settings in a cell; so is a record that no section names.
"""

from pathlib import Path

import matplotlib as mpl
import yaml

from sparsereg.errors import UserError
from sparsereg.runs.pictures import STYLE, accuracy_picture, like_published, read_csv
from sparsereg.runs.records import Run, read_records
from sparsereg.runs.result_table import SPREADS, find_results, result_table
from sparsereg.runs.table import (
    Row,
    differing_settings,
    group_seeds,
    markdown,
    mean_text,
    settings_text,
)

Records = dict[str, list[Run]]  # by the name of the file
PLAIN = {  # columns of a table of settings: result, (factor, format)
    "val_acc": ("validation, %", 100, ".2f"),
    "L_C0": ("L_C0", 1, ".4f"),
    "params": ("parameters", 1, ",.0f"),
    "macs": ("MACs", 1, ",.0f"),
    "train_seconds": ("minutes", 1 / 60, ".1f"),
}


def write_results(folder: Path) -> list[Path]:
    """Write FOLDER.md, FOLDER.svg and the other pages beside the folder; return their paths.

    Raises:
        UserError: notes.yaml or published.csv is missing or wrong, or a record is damaged.
    """
    try:
        notes = yaml.safe_load((folder / "notes.yaml").read_text(encoding="utf-8"))
        published = read_csv(folder / "published.csv")
        records = read_all(folder)
        pages = {folder.name: results_page(folder.name, notes, published, records)}
        for name, section in notes.get("pages", {}).items():
            pages[name] = other_page(folder.name, section, records)
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"results={folder} cannot be read ({reason})") from None
    written = [folder.with_name(f"{name}.md") for name in pages]
    for page, content in zip(written, pages.values(), strict=True):
        page.write_text(content, encoding="utf-8")
    picture = folder.with_suffix(".svg")
    with mpl.rc_context(STYLE):
        figure = accuracy_picture(series(notes, records))
        figure.savefig(picture, metadata={"Date": None})
    return [*written, picture]


def read_all(folder: Path) -> Records:
    found = {}
    for path in sorted(folder.glob("*.csv")):
        try:
            found[path.stem] = read_records(path)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
    return {name: runs for name, runs in found.items() if runs}


def written_by(folder: str) -> str:
    command = f"`python report.py results=docs/{folder}`"
    return f"{command} writes this page from the CSV files in [{folder}]({folder})."


def other_page(folder: str, section: dict, records: Records) -> str:
    parts = [f"# {section['title']}", section["notes"], *results_section(section, [], records)]
    parts.append(written_by(folder))
    return "\n\n".join(part.strip() for part in parts).replace("{folder}", folder) + "\n"


def results_page(folder: str, notes: dict, published: list[dict], records: Records) -> str:
    parts = [
        "# Results",
        written_by(folder),
        notes["intro"],
        f"![Test accuracy against sparsity]({folder}.svg)",
    ]
    for name, section in (notes["sections"] | unnamed(notes, records)).items():
        parts += [f"## {section['title']}", section.get("notes", "")]
        if "rows" in section:
            rows = [row for row in published if row["table"] == name]
            parts += results_section(section, rows, records)
        elif name in records:
            parts += [markdown(settings_table(group_seeds(records[name])))]
            parts += [f"One row a run, with all settings: [{name}.csv]({folder}/{name}.csv)"]
    page = "\n\n".join(part.strip() for part in parts if part) + "\n"
    return page.replace("{folder}", folder)


def unnamed(notes: dict, records: Records) -> dict[str, dict]:
    """A section for each record that no other shows."""
    rows = [row["runs"] for s in notes["sections"].values() for row in s.get("rows", ())]
    shown = {*notes["sections"], *(pattern.partition("/")[0] for pattern in rows)}
    return {name: {"title": name.replace("_", " ")} for name in records if name not in shown}


def results_section(section: dict, published: list[dict], records: Records) -> list[str]:
    """The table, and what has not been run yet."""
    spread = section.get("spread", "sd")
    if spread not in SPREADS:
        raise ValueError(f"spread: {spread} must be one of {', '.join(SPREADS)}")
    results, missing = find_results(section["rows"], by_name(records))
    parts = []
    if results or published:
        parts.append(markdown(result_table(results, published, spread)))
    if missing:
        parts.append(f"Not run yet: {'; '.join(missing)}.")
    return parts


def by_name(records: Records) -> dict[str, Run]:
    return {f"{name}/{run.name}": run for name, runs in records.items() for run in runs}


def settings_table(rows: list[Row]) -> list[list[str]]:
    """Headings, then for each row the settings in which it differs, and what came out."""
    keys = [key for key in differing_settings(rows) if key != "trainer.max_epochs"]
    shown = {k: column for k, column in PLAIN.items() if any(k in r.runs[0].results for r in rows)}
    headings = ["settings", "epochs", *(heading for heading, *_ in shown.values()), "seeds"]
    cells = [
        [
            settings_text(row.settings, keys),
            str(row.settings.get("trainer.max_epochs", "")),
            *(mean_text(*row.mean_sd(key), *style) for key, (_, *style) in shown.items()),
            str(len(row.runs)),
        ]
        for row in rows
    ]
    return [headings, *cells]


def series(notes: dict, records: Records) -> dict[str, list[Row]]:
    """The rows of the accuracy picture: those of the published network, by how they came about."""
    found: dict[str, list[Row]] = {}
    for section in notes["sections"].values():
        results, _ = find_results(section.get("rows", []), by_name(records))
        for result in results:
            if like_published(result.runs):
                found.setdefault(result.network.partition(",")[0], []).append(result.runs)
    return found
