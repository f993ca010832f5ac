"""The sparsity that is asked for is the one that the cut network has."""

import pytest
import torch
from conftest import SHORT, SMALL, assert_one_line, checkpoint_path, events, run_folder, summary

import sparsereg
from sparsereg.checkpoint import read_checkpoint
from sparsereg.compact import compact
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.sparsity.size import count
from sparsereg.training.results import warn_missed

IMAGE = (3, 32, 32)
DENSE = {"params": 260_650, "macs": 79_643_904}
LENGTH = ("trainer.max_epochs=2", "trainer.limit_train_batches=6")
TWO_EPOCHS, TWO_SMALL = (*SHORT, *LENGTH), (*SMALL, *LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize(
    "run, name, target",
    [
        (TWO_SMALL, "params", 0.3),
        pytest.param(TWO_SMALL, "params", 0.5, marks=pytest.mark.coverage),
        pytest.param(TWO_EPOCHS, "params", 0.8, marks=pytest.mark.coverage),
        (TWO_EPOCHS, "macs", 0.5),
    ],
)
def test_a_short_run_hits_its_target(command, tmp_path, run, name, target):
    arguments = (f"cost={name}", f"target_sparsity={target}", f"output_dir={tmp_path}")
    result = command("train.py", *run, *arguments)
    assert result.code == 0, result.err
    results = summary(tmp_path)
    assert results["reached_sparsity"] == pytest.approx(target, abs=0.01)
    small = compact(sparsereg.load(checkpoint_path(tmp_path, name="best.ckpt")))
    reached = 1 - count(small, (3, 16, 16))[name] / results[f"dense_{name}"]
    assert reached == pytest.approx(target, abs=0.01)
    if run is TWO_EPOCHS:
        reached = 1 - count(small, IMAGE)[name] / DENSE[name]
        assert reached == pytest.approx(target, abs=0.02), "at 32x32, too"
    assert "missed" not in result.err
    assert f"sparsity of {name}, {target} asked for" in result.out


@pytest.mark.slow
def test_what_a_run_with_a_target_logs(command, tmp_path):
    arguments = (
        "target_sparsity=0.6",
        "cost=params",
        "dual_lr=9",
        "target_warmup=1",
        "gate_lr=0.01",
    )
    result = command("train.py", *TWO_SMALL, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    log = events(run_folder(tmp_path))
    values = {tag: [e.value for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    for name in ("channels", "params", "macs"):
        assert len(values[f"gates/expected_sparsity/{name}"]) == 12
        assert len(values[f"size/actual_sparsity/{name}"]) == 2
    one_minus = [1 - value for value in values["L_C0"]]
    assert values["gates/expected_sparsity/channels"] == pytest.approx(one_minus, abs=1e-6)
    assert values["size/actual_sparsity/params"] == values["sparsity"]
    assert values["size/actual_sparsity/params"][1] == pytest.approx(0.6, abs=0.01)
    # λ by hand, from the sparsities: none at first, then 9 times what is missing
    expected, multiplier = values["gates/expected_sparsity/params"], 0.0
    for step in range(9):
        assert values["gates/lambda_l0"][step] == pytest.approx(multiplier, rel=1e-3, abs=1e-4)
        multiplier = max(0.0, multiplier + 9 * (0.6 * min(1, step / 6) - expected[step]))
    assert max(values["gates/lambda_l0"]) > 0 == values["gates/lambda_l0"][0]


@pytest.mark.parametrize("optimizer, gate_lr, rate", [("adamw", "null", 0.2), ("sgd", "0.5", 0.5)])
def test_settled_gates_stay(command, tmp_path, optimizer, gate_lr, rate):
    """Neither momentum nor the penalty moves them, while the weights train on. Before that their
    rate fits the run of 12 steps, or is the one that is given."""
    arguments = ("target_sparsity=0.5", f"optimizer={optimizer}", f"gate_lr={gate_lr}")
    result = command("train.py", *TWO_SMALL, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    checkpoint = read_checkpoint(checkpoint_path(tmp_path))
    state = checkpoint["state_dict"]
    gates = torch.cat([tensor for key, tensor in state.items() if key.endswith("qz_loga")])
    assert sorted(gates.unique().tolist()) == [-10, 6]
    assert state["constraint._extra_state"] == {"settled": True}
    assert checkpoint["optimizer_states"][0]["param_groups"][1]["lr"] == pytest.approx(rate)


def test_best_is_among_the_settled(command, tmp_path):
    """However good the accuracy was before the network had the sparsity."""
    arguments = ("target_sparsity=0.9", "cost=params", "settle_epochs=1", "trainer.max_epochs=3")
    result = command("train.py", *TWO_SMALL, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    assert read_checkpoint(checkpoint_path(tmp_path, name="best.ckpt"))["epoch"] == 2


def test_a_missed_target_is_said(capsys):
    results = {"checkpoint": "RUN/best.ckpt", "cost": "params", "target_sparsity": 0.5}
    warn_missed(results | {"reached_sparsity": 0.4921})
    assert capsys.readouterr().err == ""
    warn_missed(results | {"reached_sparsity": 0.4832})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: target_sparsity=0.5 (cost=params) was missed")
    assert "RUN/best.ckpt has 0.4832" in line


@pytest.mark.slow
def test_the_multiplier_closes_gates(command, tmp_path):
    """Before they are settled; with λ = 0 the expected sparsity would stay below 0.05."""
    arguments = (
        "data=digits",
        "model=lenet5",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "optimizer.lr=3e-3",
    )
    run = ("trainer.max_epochs=4", "trainer.log_every_n_steps=1", "droprate_init=0.05")
    target = ("target_sparsity=0.6", "cost=params", f"output_dir={tmp_path}")
    result = command("train.py", *arguments, *run, *target)
    assert result.code == 0, result.err
    log = events(run_folder(tmp_path))
    expected = [event.value for event in log.Scalars("gates/expected_sparsity/params")]
    settled = int(0.6 * len(expected))
    assert expected[0] < 0.05 and expected[settled - 1] > 0.25
    assert expected[-1] == pytest.approx(0.6, abs=0.01)


@pytest.mark.slow
def test_going_on_to_a_higher_target_keeps_the_gates(command, tmp_path):
    first = ("target_sparsity=0.5", "cost=params", "droprate_init=0.05")
    result = command("train.py", *TWO_SMALL, *first, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    reached = summary(tmp_path)["reached_sparsity"]
    start = ("keep_gates=true", f"ckpt_path={checkpoint_path(tmp_path)}", "cost=params")
    result = command(
        "train.py", *TWO_SMALL, *start, "target_sparsity=0.8", f"output_dir={tmp_path}"
    )
    assert result.code == 0, result.err
    assert summary(tmp_path, 1)["reached_sparsity"] == pytest.approx(0.8, abs=0.01)
    opened = [
        deterministic_gate(sparsereg.load(checkpoint_path(tmp_path, version)).qz_loga()) > 0
        for version in (0, 1)
    ]
    assert (opened[0] >= opened[1]).all(), "what was closed stays closed"
    going_on = ("resume_training=true", "trainer.max_epochs=3", "target_warmup=1")
    resumed = command("train.py", f"ckpt_path={checkpoint_path(tmp_path, 1)}", *going_on)
    assert_one_line(resumed, "target_warmup=1", "null", "a resumed run keeps it")
    lower = command("train.py", *TWO_SMALL, *start, "target_sparsity=0.3")
    assert_one_line(lower, "target_sparsity=0.3", f"{reached:.4f}", "keep_gates=false")


@pytest.mark.slow
def test_cut_and_trained_on_in_one_command(command, tmp_path):
    arguments = ("target_sparsity=0.5", "cost=macs", "finetune_epochs=1")
    result = command("train.py", *TWO_SMALL, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    cut = summary(tmp_path, 1)
    assert 1 - cut["macs"] / cut["dense_macs"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_gates_everywhere_reach_95_percent(command, tmp_path):
    everywhere = ("gate_reductions=true", "model.gate_stem=true")
    arguments = ("target_sparsity=0.95", "cost=params", *everywhere, f"output_dir={tmp_path}")
    result = command("train.py", *TWO_EPOCHS, *arguments)
    assert result.code == 0, result.err
    found = summary(tmp_path)
    assert found["reached_sparsity"] == pytest.approx(0.95, abs=0.01)
    opened = found["open_channels"]
    assert 0 < opened["stem/3x3"] < 64 and "block1/reduce3x3" in opened
    [stem] = [line.replace("│", "").split() for line in result.out.splitlines() if "stem" in line]
    assert stem == ["stem", str(opened["stem/3x3"]), str(opened["stem/3x3"])], "one layer, and all"

    report = command("report.py", f"runs={tmp_path}", f"out={tmp_path / 'report'}")
    assert report.code == 0, report.err
