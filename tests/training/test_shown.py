"""What a run shows: lines that fit, curves in groups, warnings that are the user's to mend."""

import csv
import re
import shlex
import types
import warnings

import numpy as np
import pytest
import rich
import torch
from conftest import (
    SMALL,
    assert_one_line,
    assert_quiet,
    checkpoint_path,
    events,
    run_folder,
    run_here,
)
from torch import nn

from sparsereg.checkpoint import read_checkpoint
from sparsereg.commands.command_line import quieten
from sparsereg.model.basic_l0_blocks import prob_nonzero
from sparsereg.training.guards import StillGates
from sparsereg.training.loggers import tag_of
from sparsereg.training.monitors import EpochLine, GateMonitor
from sparsereg.training.pictures import OPEN, ROW, blocks_picture
from sparsereg.training.schedules import one_cycle


@pytest.mark.slow
def test_the_demo_says_what_pruning_costs_and_what_to_type_next(command, tmp_path):
    """From a dense run with the same settings; and nothing that is not the user's to mend."""
    few = ("trainer.max_epochs=1", "trainer.limit_train_batches=5", "model=lenet5")
    arguments = ("experiment=demo", *few, "trainer=cpu", f"output_dir={tmp_path}")
    alone = command("train.py", *arguments)
    assert_quiet(alone)
    asked_for = next(line for line in alone.out.splitlines() if "without_using_gate=true" in line)
    dense = command("train.py", *asked_for.split()[2:])
    assert_quiet(dense)
    assert "target_sparsity=0.6" in dense.out
    beside = command("train.py", *arguments)
    assert_quiet(beside)
    [reached] = re.findall(r"test accuracy +│ +│ +([\d.]+%)", dense.out)
    assert re.search(rf"test accuracy +│ +{reached} +│ +[\d.]+%", beside.out)
    assert "if cut" in beside.out and "version_1, trained without gates" in beside.out
    assert "compact.py ckpt_path=" in beside.out and "without_using_gate=true" not in beside.out


def lines_to_go_on(out: str) -> list[str]:
    return [line.strip() for line in out.partition("to go on:")[2].splitlines()]


@pytest.mark.slow
def test_a_resumed_run_names_what_its_checkpoint_decided(command, tmp_path):
    """Network and data of the line that prunes it are those of the run."""
    dense = (*SMALL, "without_using_gate=true", "scheduler.milestones=[3]", "seed=9")
    assert command("train.py", *dense, f"output_dir={tmp_path}").code == 0
    more = ("resume_training=true", "without_using_gate=true", "trainer.max_epochs=2")
    result = command("train.py", f"ckpt_path={checkpoint_path(tmp_path)}", *more, "trainer=cpu")
    [line] = [line for line in lines_to_go_on(result.out) if "target_sparsity=0.6" in line]
    assert "model=lenet5" in line and "data=digits" in line and "seed=9" in line
    assert command(*shlex.split(line)[1:], "trainer.enable_progress_bar=false").code == 0
    old, new = (read_checkpoint(checkpoint_path(tmp_path, n))["sparsereg"] for n in (1, 2))
    for group in ("data", "optimizer", "scheduler", "loss"):
        assert new["config"][group] == old["config"][group]
    assert new["network"]["name"] == "lenet5" and new["config"]["seed"] == 9


@pytest.mark.slow
def test_a_cut_network_is_not_offered_gates(command, tmp_path):
    result = command("train.py", *SMALL, "finetune_epochs=1", f"output_dir={tmp_path}")
    lines = lines_to_go_on(result.out)
    assert not any("target_sparsity" in line for line in lines)
    best = checkpoint_path(tmp_path, 1, "best.ckpt")
    assert {f"python {name}.py ckpt_path={best}" for name in ("compact", "test")} <= {*lines}


def test_a_terminal_of_80_columns(command, tmp_path):
    arguments = [a for a in SMALL if "progress_bar" not in a]
    rich.reconfigure(force_terminal=True, width=80)
    try:
        result = command("train.py", *arguments, f"output_dir={tmp_path}")
    finally:
        rich.reconfigure()
    assert_quiet(result)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", result.out).replace("\r", "\n").splitlines()
    bars = [line for line in shown if "loss" in line and "left" in line]
    assert bars and max(map(len, bars)) <= 80
    assert re.fullmatch(
        r"epoch 1/1 ━+ 100% \S+ left  loss \d\.\d{3}  acc 0\.\d{4}", bars[-1].strip()
    )


class Lines:
    """A trainer in its last epoch of 180."""

    is_global_zero, current_epoch, max_epochs = True, 179, 180
    callback_metrics = dict.fromkeys(("val_acc", "L_C0", "sparsity", "actual_sparsity/macs"), 0.5)
    callback_metrics |= {"val_loss": 12.3456, "lambda_l0": 123.456}


@pytest.mark.parametrize("cost", [None, "params", "macs"])
def test_an_epoch_is_one_line(cost, capsys):
    objective = types.SimpleNamespace(cost=cost, constraint=cost)
    EpochLine().on_train_epoch_end(Lines(), types.SimpleNamespace(objective=objective))
    line = capsys.readouterr().out.rstrip("\n")
    assert line.startswith("epoch 180/180  val_loss 12.3  val_acc 0.5000") and len(line) <= 80
    assert ("λ 123" in line) == (cost is not None) and ("macs" in line) == (cost == "macs")


def test_a_warning_is_one_line(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", None)
    quieten()
    shown = warnings.formatwarning("first\n  second", UserWarning, "file.py", 1)
    assert shown == "warning: first second\n"


def still(steps: int, moved_by: float) -> list[str]:
    """The warnings of a run with a one-cycle rate, whose gates end `moved_by` from their start."""
    qz_loga = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([qz_loga], lr=0.1)
    scheduler = one_cycle(optimizer, steps, 0.25, 25.0, 1e4)["scheduler"]
    module = types.SimpleNamespace(
        gated=True,
        total_steps=steps,
        constraint=None,
        net=types.SimpleNamespace(qz_loga=lambda: qz_loga),
        prob_open=prob_nonzero,
        weight_of_cost=lambda: torch.tensor(5.0),
    )
    trainer, guard = types.SimpleNamespace(optimizers=[optimizer]), StillGates()
    guard.on_train_start(trainer, module)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(1, steps):
            optimizer.step()
            scheduler.step()
            qz_loga.data += moved_by / steps
            trainer.global_step = step
            guard.on_train_batch_end(trainer, module, None, None, step)
    return [str(warning.message) for warning in said if "gates" in str(warning.message)]


def test_gates_are_called_still_once_their_rate_has_peaked():
    [message] = still(200, moved_by=0.01)
    after = int(re.search(r"after (\d+) of 200 steps", message)[1])
    assert 48 <= after <= 52, "a quarter of the run, not a tenth"
    assert still(200, moved_by=1.0) == []


@pytest.mark.parametrize(
    "settings, words",
    [
        (("scheduler=one_cycle",), ["3 steps", "5 steps or more"]),
        (("trainer.limit_train_batches=0.001",), ["of 39 batches is none", "0.0257 or more"]),
        (("trainer.limit_val_batches=0.5",), ["limit_val_batches=0.5 of 1 batches", "use 1 or"]),
        (("trainer.limit_test_batches=0.5",), ["limit_test_batches=0.5 of 1 batches", "use 1 or"]),
    ],
)
def test_a_run_that_is_too_short_claims_nothing(settings, words, command, tmp_path):
    result = command("train.py", *SMALL, *settings, f"output_dir={tmp_path / 'out'}")
    assert_one_line(result, *words)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder of a run of seven steps, of which every third is logged."""
    folder = tmp_path_factory.mktemp("shown")
    steps = ("trainer.limit_train_batches=7", "trainer.log_every_n_steps=3", "flip_tta=true")
    assert run_here("train.py", *SMALL, *steps, f"output_dir={folder}") == 0
    return run_folder(folder)


def test_the_last_step_is_logged(shown):
    with open(shown / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["L_C0"]] == [2, 5, 6]
    assert {row["epoch"] for row in rows if row["epoch"]} == {"1"}


def test_tensorboard_has_groups(shown):
    log = events(shown)
    scalars = {tag for tag in log.Tags()["scalars"] if not tag.startswith(("hp", "results"))}
    groups = {tag.partition("/")[0] for tag in scalars}
    assert groups == {"train", "val", "gates", "size", "open_channels", "L_C0", "sparsity"}
    assert {"train/acc", "val/loss", "gates/lambda_l0", "size/macs"} <= scalars
    assert log.Tags()["images"] == ["open channels"]
    assert {"results/params", "results/macs", "results/test_acc"} <= {*log.Tags()["scalars"]}
    from tensorboard.plugins.custom_scalar import layout_pb2

    layout = layout_pb2.Layout()
    [tensor] = log.Tensors("custom_scalars__config__")
    layout.ParseFromString(tensor.tensor_proto.string_val[0])
    titles = [category.title for category in layout.category]
    assert titles == ["accuracy and loss", "gates", "size", "open channels"]
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert any(re.fullmatch(pattern, tag) for tag in scalars), pattern


def test_hparams_are_the_readmes_and_what_differs(shown):
    from tensorboard.plugins.hparams import plugin_data_pb2

    log = events(shown)
    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    values = {
        key: getattr(value, value.WhichOneof("kind"))
        for key, value in data.session_start_info.hparams.items()
    }
    assert values["without_using_gate"] == "false" and values["target_sparsity"] == "null"
    assert values["lambda_l0"] == 0.5 and values["model"] == "lenet5" and values["data"] == "Digits"
    assert values["flip_tta"] == "true" and values["trainer.max_epochs"] == 1
    assert "optimizer.lr" not in values and len(values) < 25


@pytest.mark.parametrize(
    "name, tag",
    [
        ("train_acc", "train/acc"),
        ("val_loss", "val/loss"),
        ("lr-AdamW/gates", "train/lr-AdamW/gates"),
        ("lambda_l0/conv1", "gates/lambda_l0/conv1"),
        ("actual_sparsity/macs", "size/actual_sparsity/macs"),
        ("sparsity", "sparsity"),
        ("open_channels/block1/3x3", "open_channels/block1/3x3"),
    ],
)
def test_tags(name, tag):
    assert tag_of(name) == tag


def test_the_picture_is_darker_where_more_is_open():
    widths = {"block1/1x1": 4, "block1/3x3": 8, "block2/1x1": 4}
    history = [widths, {"block1/1x1": 2, "block1/3x3": 0, "block2/1x1": 4}]
    picture = blocks_picture(history, widths)
    rows = [picture[top + 5] for top in (2 * ROW, 3 * ROW, 4 * ROW + 6)]
    first, second = (np.stack(rows)[:, x] for x in (150, 450))
    assert (first == OPEN).all(), "all open"
    assert second[0].tolist() == [127, 184, 216] and (second[1] == 255).all()
    assert (second[2] == OPEN).all()


@pytest.mark.parametrize("epochs, drawn", [(1, [0]), (3, [0, 1, 2]), (25, [*range(0, 25, 2)])])
def test_it_is_drawn_about_ten_times(epochs, drawn):
    trainer = types.SimpleNamespace(max_epochs=epochs)
    found = []
    for trainer.current_epoch in range(epochs):
        if GateMonitor().is_drawn(trainer):
            found.append(trainer.current_epoch)
    assert found == drawn and found[-1] == epochs - 1
