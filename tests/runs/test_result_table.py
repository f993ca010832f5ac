"""docs/results.md: what its tables say is what the records hold, published rows stand beside them,
and what has not been run is named."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, assert_one_line
from run_folders import make_run

from docs.figures import l_c0
from sparsereg.runs.pictures import PUBLISHED as PUBLISHED_FILE
from sparsereg.runs.pictures import read_csv
from sparsereg.runs.records import Run, write_records
from sparsereg.runs.result_table import HEADINGS, T, accuracy, find_results, result_table

ROWS = [
    {"network": "dense", "runs": "mine/dense/*", "epochs": 40, "dense": True},
    {"network": "gates, 0.64", "runs": "mine/params_0.64/*", "epochs": "40 + 15"},
    {"network": "random, 0.64", "runs": "mine/random_params_0.64/*", "epochs": "40 + 40"},
]
PUBLISHED = {"table": "tiny", "network": "theirs", "test": "85.88", "points": "-3.69"}
PUBLISHED |= {"sparsity": "0.3", "params": "70 %", "macs": "", "faster": "", "epochs": "180"}
PUBLISHED |= {"source": "a paper"}


def run(name: str, seed: int, test: float, params: int, **results: float) -> Run:
    size = {"params": params, "macs": 10 * params, "dense_params": 1000, "dense_macs": 10_000}
    found = {"val_acc": 0.5, "test_acc": test, "sparsity": 1 - params / 1000, **size, **results}
    settings = {"seed": seed, "trainer.max_epochs": 40}
    return Run(f"{name}/seed_{seed}/version_0", None, settings=settings, results=found)


RUNS = [
    run("dense", 1, 0.92, 1000),
    run("dense", 2, 0.93, 1000),
    run("params_0.64", 1, 0.905, 360, speedup_batch_128=1.6),
]


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, without its first two lines."""
    [section] = re.findall(f"^## {heading}$(.*?)(?=^## |\\Z)", page, re.MULTILINE | re.DOTALL)
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder of results: two records, one of them in a table of results."""
    folder = tmp_path / "results"
    folder.mkdir()
    notes = {"intro": "Words.", "sections": {"tiny": {"title": "Tiny", "rows": ROWS}}}
    notes["pages"] = {"beside": {"title": "Beside", "notes": "More words.", "rows": ROWS[:2]}}
    (folder / "notes.yaml").write_text(yaml.safe_dump(notes))
    (folder / "published.csv").write_text(
        f"{','.join(PUBLISHED)},L_C0\n{','.join(PUBLISHED.values())},\n"
    )
    write_records(RUNS, folder / "mine.csv")
    write_records(RUNS[:1], folder / "tried_twice.csv")
    return folder


def test_own_and_published_rows_by_size(command, results):
    assert command("report.py", f"results={results}").code == 0
    page = results.with_suffix(".md").read_text()
    source = "[mine.csv](results/mine.csv)"
    dense, published, gates = cells(page, "Tiny")
    spread = "92.50 ± 0.71 (2 seeds)"
    assert dense == ["dense", spread, "", "1,000", "10,000", "", "40", source]
    assert published == ["*theirs*", "85.88", "-3.69", "70 %", "", "", "180", "a paper"]
    size = ["360 (36.0%)", "3,600 (36.0%)"]
    assert gates == ["gates, 0.64", "90.50 (1 seed)", "-2.00", *size, "1.60", "40 + 15", source]
    assert "Not run yet: random, 0.64.\n" in page
    assert cells(page, "tried twice") == [["", "40", "50.00", "1,000", "10,000", "1"]]


def test_a_page_of_its_own(command, results):
    assert command("report.py", f"results={results}").code == 0
    page = (results.parent / "beside.md").read_text(encoding="utf-8")
    assert page.startswith("# Beside\n\nMore words.") and "theirs" not in page
    own = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in own] == ["| dense", "| gates, 0.64"]
    (results / "mine.csv").unlink()
    assert command("report.py", f"results={results}").code == 0
    page = (results.parent / "beside.md").read_text(encoding="utf-8")
    assert "| " not in page and "Not run yet: dense; gates, 0.64." in page


def test_an_interval_is_that_of_students_t():
    """Five errors with mean 1.01 and standard deviation 0.0403: ± 0.05, as a paper has it."""
    values = [98.94, 98.97, 98.99, 99.01, 99.04]
    assert accuracy(values, "interval") == "98.99 ± 0.05 (5 seeds)"
    assert accuracy(values, "sd") == "98.99 ± 0.04 (5 seeds)"
    stats = pytest.importorskip("scipy.stats")
    assert list(T) == pytest.approx([stats.t.ppf(0.975, n - 1) for n in range(2, 11)], abs=5e-4)


def test_points_are_counted_from_the_dense_row_above():
    other = run("params_0.5", 1, 0.9, 500)
    runs = {f"mine/{r.name}": r for r in [*RUNS, other]}
    rows = [{"network": "before", "runs": "mine/params_0.5/*", "epochs": 1}, *ROWS]
    found, missing = find_results(rows, runs)
    assert missing == ["random, 0.64"]
    points = {
        row[0]: row[HEADINGS.index("points against dense")] for row in result_table(found, [], "sd")
    }
    assert points == {HEADINGS[0]: HEADINGS[2], "dense": "", "before": "", "gates, 0.64": "-2.00"}


def test_a_wrong_word_in_the_notes(command, results):
    notes = yaml.safe_load((results / "notes.yaml").read_text())
    notes["sections"]["tiny"]["spread"] = "range"
    (results / "notes.yaml").write_text(yaml.safe_dump(notes))
    assert_one_line(command("report.py", f"results={results}"), "spread", "range", "interval")


def test_no_table_of_the_page_is_wider_than_nine_columns():
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert max(line.count("|") - 1 for line in lines if line.startswith("| ")) <= 9


def test_curves_from_scratch_end_beside_the_published_points(tmp_path):
    for weight in l_c0.PUBLISHED:
        make_run(tmp_path / f"scratch_{weight}/seed_1/version_0", {"lambda_l0": weight})
    stopped = make_run(tmp_path / "scratch_1.0/seed_1/version_1", {"lambda_l0": 1.0})
    (stopped / "summary.json").unlink()
    files = tmp_path / "scratch.csv", tmp_path / "l_c0.svg"
    l_c0.main([str(tmp_path)], *files)
    rows = read_csv(files[0])
    assert [(row["step"], row["L_C0"]) for row in rows] == 3 * [("0", "0.8000"), ("10", "0.5000")]
    lines = [line.get_xydata().tolist() for line in l_c0.draw(rows).axes[0].lines[:-1]]
    assert lines[::2] == 3 * [[[0, 0.8], [10, 0.5]]]
    ends = {float(row["L_C0"]) for row in read_csv(PUBLISHED_FILE) if row["L_C0"]}
    assert {line[0][1] for line in lines[1::2]} == ends and files[1].exists()
