"""The table: columns of settings that differ, seeds as mean ± standard deviation."""

import io

import pytest
from rich.console import Console
from run_folders import make_latency, make_run

from sparsereg.runs.find import find_runs
from sparsereg.runs.records import Run, write_records
from sparsereg.runs.table import differing_settings, group_seeds, markdown, rich_table, table


@pytest.fixture
def folder(tmp_path):
    """λ = 1 with three seeds, λ = 0.5 with one, none without a target."""
    for seed, accuracy in ((1, 0.80), (2, 0.82), (3, 0.87)):
        config = {"lambda_l0": 1.0, "seed": seed, "output_dir": f"out_{seed}"}
        results = {"test_acc": accuracy, "val_acc": 1 - accuracy, "checkpoint": f"seed_{seed}.ckpt"}
        make_run(tmp_path / f"version_{seed}", config, sparsity=0.5, params=100_000, **results)
    make_run(tmp_path / "version_4", {"seed": 1})
    return tmp_path


def test_seeds_are_grouped(folder):
    """0.80, 0.82, 0.87: mean 0.83, deviations -3, -1, 4 points, so sd = sqrt(26 / 2) points."""
    cells = table(group_seeds(find_runs([str(folder)])))
    assert cells[0] == [
        *("lambda_l0", "val, %", "test, %", "L_C0", "sparsity", "params"),
        *("MACs", "seeds", "checkpoint"),
    ]
    assert cells[1][0] == "0.5" and cells[1][2] == "89.00" and cells[1][-2] == "1 (1)"
    assert cells[2] == [
        *("1", "17.00 ± 3.61", "83.00 ± 3.61", "0.5000", "0.5000", "100,000"),
        *("60,000,000", "3 (1, 2, 3)", "seed_1.ckpt"),
    ]


def test_unfinished_and_broken_runs_have_no_row(folder):
    (folder / "version_1" / "summary.json").unlink()
    (folder / "version_4" / "config.yaml").unlink()
    [row] = group_seeds(find_runs([str(folder)]))
    assert row.seeds() == "2 (2, 3)"


def test_a_key_that_older_runs_lack_is_no_difference():
    rows = group_seeds(
        Run(str(i), None, settings=settings, results={"sparsity": i, "test_acc": 0.5})
        for i, settings in enumerate([{"a": 1, "seed": 1}, {"a": 2, "cost": "macs", "seed": 2}])
    )
    assert differing_settings(rows) == ["a"] and len(rows) == 2


def test_the_record_gives_the_same_table(folder):
    make_latency(folder / "version_4")
    runs = find_runs([str(folder)])
    write_records(runs, folder / "record.csv")
    cells = table(group_seeds(runs))
    assert cells == table(group_seeds(find_runs([str(folder / "record.csv")])))
    assert cells[0][7:9] == ["ms, batch 1", "ms, batch 128"]
    assert cells[1][7:9] == ["6.64", "278.97"] and cells[2][7:9] == ["", ""]


def test_without_a_finished_run_the_table_is_its_head():
    assert len(table(group_seeds([Run("a", None, "unfinished")]))) == 1


def test_markdown():
    assert markdown([["a", "b"], ["1|2", ""]]) == "| a | b |\n| --- | --- |\n| 1\\|2 |  |"


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_table_keeps_its_numbers_whole(folder, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(rich_table(group_seeds(find_runs([str(folder)]))))
    words = console.file.getvalue().split()
    assert {"lambda_l0=1", "83.00", "3.61", "100,000", "60,000,000", "0.5000"} <= set(words)
