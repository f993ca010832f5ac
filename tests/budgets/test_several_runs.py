"""Several runs for one budget: stopped and gone on with, several sizes, what they leave."""

import json
import shlex
import signal

import pytest
from conftest import SMALL, TEACHABLE, assert_one_line, checkpoint_path, run_here, summary

from sparsereg.budgets.max_drop import write_found
from sparsereg.budgets.runs import keep_earlier
from sparsereg.checkpoint import load, read_checkpoint
from sparsereg.commands.command_line import stop
from sparsereg.export.formats import cut_file
from sparsereg.sparsity.size import measure
from sparsereg.training.saving import BestAndLast


def test_what_another_search_found_is_kept(tmp_path, capsys):
    """As in a sweep, whose jobs share a folder; the same search writes its own anew."""
    file = tmp_path / "max_drop.json"
    for drop, checkpoint in ((30, "a"), (40, "b"), (40, "b")):
        write_found(file, {"max_drop": drop, "trials": [{"checkpoint": checkpoint}]})
    first, second = (json.loads((tmp_path / f"max_drop{n}.json").read_text()) for n in ("_1", ""))
    assert (first["max_drop"], second["max_drop"]) == (30, 40)
    assert capsys.readouterr().out == "the earlier max_drop.json is now max_drop_1.json\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_sizes_of_other_runs_are_kept_with_their_picture(tmp_path):
    file = tmp_path / "sizes.json"
    for content in ("[1]", "[2]", "damaged"):
        file.write_text(content)
        file.with_suffix(".svg").write_text(f"picture of {content}")
        keep_earlier(file, lambda earlier: earlier == [2], ".svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("sizes_1.json", "sizes_1.svg", "sizes_2.json", "sizes_2.svg")
    ]
    assert (tmp_path / "sizes_1.svg").read_text() == "picture of [1]"


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["max_drop=9", "target_sparsity=[0.3,0.8]"])
def test_stopped_it_names_the_command_itself(dense, tmp_path, capfd, monkeypatch, asked):
    """A checkpoint of one of its runs would not go on with the others."""
    settings = (*SMALL, asked, "cost=params", f"ckpt_path={dense}", f"output_dir={tmp_path}")
    monkeypatch.setattr(BestAndLast, "on_train_epoch_end", lambda *_: stop(signal.SIGINT, None))
    assert run_here("train.py", *settings) == 130
    line = next(line for line in capfd.readouterr().out.splitlines() if "stopped" in line)
    assert shlex.split(line.removeprefix("stopped; to go on: ")) == [
        "python",
        "train.py",
        *settings,
    ]


@pytest.mark.slow
def test_several_sizes_from_one_run(command, dense, tmp_path):
    settings = ("cost=params", "target_sparsity=[0.3,0.8]", "droprate_init=0.05")
    length = ("trainer.max_epochs=2", "finetune_epochs=1", "latency.backend=torch")
    more = (*length, f"output_dir={tmp_path}")
    result = command("train.py", *TEACHABLE, *settings, *more, f"ckpt_path={dense}")
    assert result.code == 0, result.err
    rows = json.loads((tmp_path / "sizes.json").read_text())
    assert [row["target"] for row in rows] == [0.3, 0.8]
    for row in rows:
        assert row["sparsity"] == pytest.approx(row["target"], abs=0.01) and row["ms"] > 0
        assert measure(load(row["file"]), (3, 16, 16))["params"] == row["params"]
        assert f"{row['target']:g}: {row['file']}" in result.out
    starts = [read_checkpoint(checkpoint_path(tmp_path, n))["sparsereg"] for n in (0, 2)]
    assert [s["config"]["keep_gates"] for s in starts] == [False, True]
    assert starts[1]["config"]["ckpt_path"] == str(checkpoint_path(tmp_path, 0))
    assert summary(tmp_path, 3)["params"] == rows[-1]["params"]
    assert "<svg" in (tmp_path / "sizes.svg").read_text()[:400]


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["max_drop=1", "target_params=10k", "target_sparsity=[0.3,0.5]"])
def test_a_network_that_is_cut_already(command, dense, tmp_path, asked):
    """Not `add without_using_gate=true`, which a budget refuses."""
    file = cut_file(dense)
    result = command("train.py", *SMALL, asked, f"ckpt_path={file}", f"output_dir={tmp_path}")
    assert_one_line(result, f"ckpt_path={file}", asked.split("=")[0], "not cut", "best.ckpt")
    assert not list(tmp_path.iterdir())
