"""From many runs to one table, with pictures.

    python report.py                        # the runs below outputs
    python report.py runs=[outputs,other]   # of several folders, or CSV files of earlier reports
    python report.py pictures=0 out=page    # at once, into another folder
    python report.py runs=outputs/report/report.csv   # again, when the folders are gone
    python report.py results=docs/results   # docs/results.md, from the CSV files in docs/results

Prints the table and writes into `out`: report.html, one page with pictures that needs no other
file, report.md, and report.csv, which report.py can read again.
"""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from sparsereg.commands import command_line
from sparsereg.commands.checks import check_settings
from sparsereg.commands.overrides import typed
from sparsereg.errors import UserError, printable
from sparsereg.files import write_atomically
from sparsereg.runs.find import find_runs
from sparsereg.runs.records import Run, write_records
from sparsereg.runs.table import Row, group_seeds, markdown, rich_table, table

WIDTH = 160  # columns, where the output is no terminal


def main(cfg: DictConfig) -> None:
    check_settings(cfg, typed())
    if cfg.results is not None:
        from sparsereg.runs.results_page import write_results  # matplotlib takes half a second

        for path in write_results(Path(cfg.results)):
            print(f"wrote {path}")
        return
    runs = find_runs([cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs))
    rows = group_seeds(runs)
    print_report(runs, rows)
    try:
        write_report(Path(cfg.out), runs, rows, cfg.pictures)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise UserError(f"out={cfg.out} cannot be written ({reason})") from None


def print_report(runs: list[Run], rows: list[Row]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(rich_table(rows))
    for number, row in enumerate(rows, 1):
        print(f"{number}: {row.checkpoint()}")
    for run in runs:
        if run.why and run.status != "unfinished":
            print(printable(f"{run.name} ({run.status}): {run.why}"))
    if unfinished := [run.name for run in runs if run.status == "unfinished"]:
        print(printable(f"{len(unfinished)} unfinished: {', '.join(unfinished)}"))


def write_report(out: Path, runs: list[Run], rows: list[Row], pictures: int) -> None:
    from sparsereg.runs.page import page

    out.mkdir(parents=True, exist_ok=True)
    record = write_records(runs, out / "report.csv")
    write_atomically(out / "report.md", markdown(table(rows)) + "\n")
    write_atomically(out / "report.html", page(runs, rows, pictures))
    print(printable(f"wrote {out}: report.html, report.md, {record}"))


def cli() -> None:  # installed as sparsereg-report
    command_line.run(main, "report")


if __name__ == "__main__":
    cli()
