"""A page of results from committed records, docs/results.md: a section for each CSV file.

The folder holds CSV files that report.py has written (`sparsereg.runs.records`), published.csv, the
table to compare with, and notes.yaml, the words:

    intro: …                     below the title
    published: …                 below the published table
    sections:
      NAME:                      of NAME.csv, in the order of the page
        title: …
        notes: …                 machine, data, seeds, commands

A file without an entry in it gets a section under its own name, after the others.
"""

from pathlib import Path

import matplotlib as mpl
import yaml

from sparsereg.errors import UserError
from sparsereg.runs.pictures import STYLE, accuracy_picture, like_published, read_csv
from sparsereg.runs.records import read_records
from sparsereg.runs.table import Row, group_seeds, markdown, table


def write_results(folder: Path) -> list[Path]:
    """Write FOLDER.md and FOLDER.svg beside the folder; return their paths.

    Raises:
        UserError: notes.yaml or published.csv is missing, or a record is damaged.
    """
    try:
        notes = yaml.safe_load((folder / "notes.yaml").read_text(encoding="utf-8"))
        published = read_csv(folder / "published.csv")
        sections = read_sections(folder, list(notes["sections"]))
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"results={folder} cannot be read ({reason})") from None
    page, picture = folder.with_suffix(".md"), folder.with_suffix(".svg")
    page.write_text(results_page(folder.name, notes, published, sections), encoding="utf-8")
    titles = {title(name, notes): rows for name, rows in sections.items()}
    comparable = {t: [row for row in rows if like_published(row)] for t, rows in titles.items()}
    with mpl.rc_context(STYLE):
        figure = accuracy_picture({t: rows for t, rows in comparable.items() if rows})
        figure.savefig(picture, metadata={"Date": None})
    return [page, picture]


def read_sections(folder: Path, order: list[str]) -> dict[str, list[Row]]:
    """The rows of each record, by the name of its file."""
    names = sorted(path.stem for path in folder.glob("*.csv") if path.stem not in order)
    found = {}
    for name in [*order, *names]:
        try:
            found[name] = group_seeds(read_records(folder / f"{name}.csv"))
        except ValueError as error:
            raise ValueError(f"{name}.csv: {error}") from None
    return {name: rows for name, rows in found.items() if rows}


def results_page(
    folder: str, notes: dict, published: list[dict[str, str]], sections: dict[str, list[Row]]
) -> str:
    command = f"`python report.py results=docs/{folder}`"
    parts = [
        "# Results",
        f"{command} writes this page from the CSV files in [{folder}]({folder}).",
        notes["intro"],
        f"![Test accuracy against sparsity]({folder}.svg)",
        "## Published",
        markdown([list(published[0]), *(list(row.values()) for row in published)]),
        notes["published"],
    ]
    for name, rows in sections.items():
        parts += [f"## {title(name, notes)}", notes["sections"].get(name, {}).get("notes", "")]
        parts += [markdown(table(rows, with_checkpoint=False))]
        parts += [f"One row a run, with all settings: [{name}.csv]({folder}/{name}.csv)"]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def title(name: str, notes: dict) -> str:
    return notes["sections"].get(name, {}).get("title", name.replace("_", " "))
