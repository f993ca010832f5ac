"""One odd folder ends no report: what cannot be read is listed with its reason, nothing is lost."""

import json
import os
import shutil

import pytest
import yaml
from run_folders import CONFIG, SUMMARY, make_run

from sparsereg.runs.find import find_runs
from sparsereg.runs.folder import read_config, started_with
from sparsereg.runs.page import page
from sparsereg.runs.records import write_records
from sparsereg.runs.table import group_seeds, markdown, rich_table, table

CONFIGS = {
    "FIFO": None,
    "deep": "a: " + "[" * 10**6,
    "deep by dashes": "- " * 10**6,
    "a bomb of aliases": "a: &a [1, 1]\n"
    + "".join(f"b{i}: {{x: *a, y: *a}}\n" for i in range(3000)),
    "a circle": "a: &a {b: *a}",
    "a wrong date": "a: 2024-99-99",
    "a tag with nonsense": 'a: !!int ""',
    "a class": "a: !!python/object:os.system x",
    "bytes": "a: !!binary aGFsbG8=",
    "a number of 4,000 digits": "a: " + "9" * 4000,
    "a list": "[1, 2]",
    "Latin-1": b"a: \xe4",
    "more than a megabyte": "a: " + "x" * 2**20,
}
SUMMARIES = {
    "text for a number": SUMMARY | {"val_acc": "high"},
    "true for a number": SUMMARY | {"macs": True},
    "NaN": SUMMARY | {"test_acc": float("nan")},
    "infinite": SUMMARY | {"sparsity": float("-inf")},
    "10⁴⁰⁰": SUMMARY | {"params": 10**400},
    "no share": SUMMARY | {"val_acc": 90.0},
    "a list for the checkpoint": SUMMARY | {"checkpoint": ["best.ckpt"]},
    "channels in words": SUMMARY | {"open_channels": {"a": "many"}},
    "channels in a list": SUMMARY | {"open_channels": [1]},
    "deep": "[" * 10**6,
    "a list": [1],
}


def assert_listed(root, why: str = "") -> None:
    """The odd run is, and the good one beside it too."""
    runs = {run.name: run for run in find_runs([str(root)])}
    assert runs["good"].status == "finished"
    assert runs["odd"].status == "broken" and why in runs["odd"].why
    assert runs["odd"].why.isprintable() and len(runs["odd"].why) < 250
    rows = group_seeds(runs.values())
    assert len(rows) == 1 and markdown(table(rows)) and page([*runs.values()], rows, pictures=2)


@pytest.mark.parametrize("kind", CONFIGS)
def test_odd_settings(kind, tmp_path):
    make_run(tmp_path / "good")
    config, content = make_run(tmp_path / "odd") / "config.yaml", CONFIGS[kind]
    config.unlink()
    if content is None:
        os.mkfifo(config)
    else:
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_listed(tmp_path, "config.yaml: ")


@pytest.mark.parametrize("kind", SUMMARIES)
def test_odd_results(kind, tmp_path):
    make_run(tmp_path / "good")
    content = SUMMARIES[kind]
    text = content if isinstance(content, str) else json.dumps(content)
    (make_run(tmp_path / "odd") / "summary.json").write_text(text)
    assert_listed(tmp_path, "summary.json: ")


def test_curves_that_are_none(tmp_path):
    """They cost a run its pictures, and it is said."""
    (make_run(tmp_path / "cut") / "metrics.csv").write_text("step,L_C0\n1")
    (make_run(tmp_path / "zero", train_seconds=2.0) / "qz_loga.csv").write_text(
        "step,-inf,0.0,1.0\n1,0,0,0\n2,0,0,0\n"
    )
    os.remove(make_run(tmp_path / "fifo", train_seconds=3.0) / "metrics.csv")
    os.mkfifo(tmp_path / "fifo" / "metrics.csv")
    runs = find_runs([str(tmp_path)])
    assert page(runs, group_seeds(runs), pictures=9).count("no pictures") == 3


def test_a_circle_of_resumed_runs(tmp_path):
    for name, other in ("ab", "ba"):
        last = str(tmp_path / other / "checkpoints" / "last.ckpt")
        make_run(
            tmp_path / name, {"resume_training": True, "ckpt_path": last, "lambda_l0": ord(name)}
        )
    assert [run.settings["start"] for run in find_runs([str(tmp_path)])] == ["resumed"] * 2


def test_no_run_outside_the_roots_is_opened(tmp_path):
    """A folder from others cannot make us read elsewhere."""
    elsewhere = make_run(tmp_path / "elsewhere", {"lambda_l0": 7.0})
    last = str(elsewhere / "checkpoints" / "last.ckpt")
    inside = make_run(tmp_path / "runs" / "a", {"resume_training": True, "ckpt_path": last})
    config = read_config(inside)
    assert started_with(config, inside, [tmp_path / "runs"])["resume_training"]
    assert not started_with(config, inside, [tmp_path])["resume_training"]


def test_brackets_and_control_characters(tmp_path, capsys):
    """Neither markup of the table nor commands for the terminal."""
    from rich.console import Console

    for seed, note in enumerate(("[bold]loud", "\x1b[2J", "a|b\nc")):
        make_run(tmp_path / f"r{seed}\x1b]0;x\x07", {"note": note})
    runs = find_runs([str(tmp_path)])
    Console(width=200).print(rich_table(group_seeds(runs)))
    said = capsys.readouterr().out + "".join(run.name for run in runs)
    assert "[bold]loud" in said and "\\x1b[2J" in said and "\x1b" not in said and "\x07" not in said
    assert len(markdown(table(group_seeds(runs))).splitlines()) == 5


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    make_run(tmp_path / "good")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert {run.status for run in find_runs([str(tmp_path)])} == {"finished", "broken"}


@pytest.mark.parametrize("relative", [True, False])
def test_runs_that_were_moved(relative, tmp_path, monkeypatch):
    """A resumed run stays the run that was stopped, and checkpoints are named where they are."""
    monkeypatch.chdir(tmp_path)
    out = "before" if relative else str(tmp_path / "before")
    runs = tmp_path / "before" / "lightning_logs"
    last = f"{out}/lightning_logs/version_0/checkpoints/last.ckpt"
    first = make_run(runs / "version_0", {"ckpt_path": None, "output_dir": out})
    (first / "summary.json").unlink()
    (first / "checkpoints").mkdir()
    (first / "checkpoints" / "last.ckpt").touch()
    going_on = {"ckpt_path": last, "resume_training": True, "output_dir": out}
    second = make_run(runs / "version_1", going_on, checkpoint="checkpoints/best.ckpt")
    (second / "checkpoints").mkdir()
    (second / "checkpoints" / "best.ckpt").touch()
    shutil.move(tmp_path / "before", tmp_path / "after")
    monkeypatch.chdir("/")
    run = find_runs([str(tmp_path / "after")])[1]
    assert run.settings["start"] == "scratch"
    best = tmp_path / "after" / "lightning_logs" / "version_1" / "checkpoints" / "best.ckpt"
    assert run.results["checkpoint"] == str(best)


def test_a_record_outlives_its_runs(tmp_path):
    """Nothing that was recorded is lost without a word, nor by a report of nothing."""
    for name in "ab":
        make_run(tmp_path / "runs" / name, {"lambda_l0": float(ord(name))})
    record = tmp_path / "report.csv"
    assert write_records(find_runs([str(tmp_path / "runs")]), record) == "report.csv"
    before = record.read_text()
    (make_run(tmp_path / "broken" / "x") / "config.yaml").write_text("a: [")
    said = write_records(find_runs([str(tmp_path / "broken")]), record)
    assert "left as it is" in said and record.read_text() == before
    shutil.rmtree(tmp_path / "runs" / "a")
    said = write_records(find_runs([str(tmp_path / "runs")]), record)
    assert "1 runs that are not in this one: now report_1.csv" in said
    assert (tmp_path / "report_1.csv").read_text() == before
    assert write_records(find_runs([str(tmp_path / "runs")]), record) == "report.csv"


def test_settings_of_any_plain_type_are_kept(tmp_path):
    settings = CONFIG | {"day": __import__("datetime").date(2024, 1, 2), "half": 0.5}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert read_config(tmp_path)["day"] == "2024-01-02"
