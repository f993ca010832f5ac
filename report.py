"""From many runs to one table, with pictures.

    python report.py                        # the runs below outputs
    python report.py runs=[outputs,other]   # of several folders, or CSV files of earlier reports
    python report.py results=docs/results   # docs/results.md, from the CSV files in docs/results

Prints the table and writes into `out`: report.html, one page with pictures that needs no other
file, report.md, and report.csv, which report.py can read again.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from sparsereg import command_line
from sparsereg.errors import UserError
from sparsereg.run_records import Run, write_records
from sparsereg.run_table import Row, group_seeds, markdown, rich_table, table
from sparsereg.runs import find_runs

WIDTH = 160  # columns, where the output is no terminal


def main(cfg: DictConfig) -> None:
    if cfg.results is not None:
        from sparsereg.results_page import write_results  # with matplotlib, which takes a second

        for path in write_results(Path(cfg.results)):
            print(f"wrote {path}")
        return
    if not isinstance(cfg.pictures, int) or cfg.pictures < 0:
        raise UserError(f"pictures={cfg.pictures} must be a whole number of at least 0")
    runs = find_runs(roots(cfg))
    rows = group_seeds(runs)
    print_report(runs, rows)

    from sparsereg.run_page import page

    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    write_records(runs, out / "report.csv")
    (out / "report.md").write_text(markdown(table(rows)) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page(runs, rows, cfg.pictures), encoding="utf-8")
    print(f"wrote {out}: report.html, report.md, report.csv")


def roots(cfg: DictConfig) -> list[str]:
    given = [cfg.runs] if isinstance(cfg.runs, str) else cfg.runs
    if not OmegaConf.is_list(given) and not isinstance(given, list):
        raise UserError(f"runs={given} must be a folder, or several: runs=[a,b]")
    return [str(root) for root in given]


def print_report(runs: list[Run], rows: list[Row]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(rich_table(rows))
    for number, row in enumerate(rows, 1):
        print(f"{number}: {row.checkpoint()}")
    for run in runs:
        if run.why:
            print(f"{run.name} ({run.status}): {run.why}")


if __name__ == "__main__":
    command_line.run(main, "report")
