"""target_params, target_macs: at most so many, and hardly less."""

import pytest
import torch
from conftest import SMALL, assert_one_line, checkpoint_path, run_folder, summary

import sparsereg
from sparsereg.budgets.size import TargetSize
from sparsereg.checkpoint import read_checkpoint
from sparsereg.commands.values import amount, is_amount
from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.size import count
from sparsereg.training.results import warn_missed

TWO_SMALL = (*SMALL, "trainer.max_epochs=2", "trainer.limit_train_batches=6")


@pytest.mark.parametrize(
    "text, number",
    [("100k", 100_000), ("1.5M", 1_500_000), ("20M", 20_000_000), ("7", 7), (1e5, 100_000)],
)
def test_amounts(text, number):
    assert is_amount(text) and amount(text) == number


@pytest.mark.parametrize("text", ["100 k", "k", "-3k", "0.1", "1e5k", "100kk", "nan", 0, -1, True])
def test_no_amounts(text):
    assert not is_amount(text)


@pytest.mark.parametrize("cost", ["params", "macs"])
@pytest.mark.parametrize("seed", [0, 2])
def test_never_more_and_hardly_less(cost, seed):
    """Whatever the order of the gates, counted on the cut network."""
    torch.manual_seed(seed)
    net = GoogleNet(droprate_init=0.05)
    for gate in net.gates.values():
        gate.qz_loga.data.normal_(2, 2)
    dense = count(net, (3, 32, 32))[cost]
    most = int(dense * (0.2 + 0.3 * seed))
    target = TargetSize(net, (3, 32, 32), most, cost, steps=9)
    target.settle()
    found = count(compact(net), (3, 32, 32))[cost]
    assert 0 <= most - found <= 0.002 * dense


@pytest.mark.slow
def test_a_run_and_its_going_on(command, tmp_path):
    asked = ("target_params=10k", f"output_dir={tmp_path}")
    result = command("train.py", *TWO_SMALL, *asked)
    assert result.code == 0 and "missed" not in result.err, result.err
    results = summary(tmp_path)
    assert results["target_params"] == 10_000 and 0 <= 10_000 - results["params"] < 500
    assert "parameters, at most 10,000 asked for" in result.out
    path = checkpoint_path(tmp_path)
    assert count(compact(sparsereg.load(path)), (3, 16, 16))["params"] == results["params"]
    config = read_checkpoint(path)["sparsereg"]["config"]
    assert config["target_params"] == "10k" and config["cost"] == "params"
    more = (f"ckpt_path={path}", "resume_training=true", "trainer.max_epochs=3")
    other = command("train.py", *more, "target_params=9k")
    assert_one_line(other, "target_params=9k", "10k", "a resumed run keeps it")
    assert command("train.py", *more).code == 0
    assert summary(tmp_path, 1)["params"] == results["params"]
    again = command("train.py", *TWO_SMALL, *asked, "skip_finished=true")
    assert again.code == 0 and f"skipped: {run_folder(tmp_path)}" in again.out


def test_a_missed_size_is_said(capsys):
    results = {"checkpoint": "RUN/best.ckpt", "cost": "params", "dense_params": 1000, "params": 91}
    warn_missed(results | {"target_params": 100})
    assert capsys.readouterr().err == ""
    for most in (90, 102):
        warn_missed(results | {"target_params": most})
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: target_params={most} was missed") and "91 param" in line


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("target_params=lots",), ["target_params=lots", "100k"]),
        (("target_params=0",), ["target_params=0", "at least 1"]),
        (("target_params=1k", "target_macs=1M"), ["target_params=1k", "target_macs=1M", "one of"]),
        (("target_params=1k", "target_sparsity=0.5"), ["target_sparsity=0.5", "ask for one"]),
        (("target_macs=1M", "cost=params"), ["cost=params", "target_macs=1M", "counts macs"]),
        (("target_macs=1M", "lambda_l0=2"), ["lambda_l0=2", "target_macs=1M"]),
        (("target_macs=1M", "without_using_gate=true"), ["target_macs", "needs gates"]),
        (("target_macs=1M", "round_to=8"), ["round_to=8", "target_macs=1M"]),
        (("target_params=10M",), ["target_params=10,000,000", "dense network has", "nothing"]),
        (("target_params=9",), ["target_params=9", "out of reach", "the smallest has"]),
    ],
)
def test_mistakes(command, tmp_path, arguments, words):
    result = command("train.py", *SMALL, *arguments, f"output_dir={tmp_path}")
    assert_one_line(result, *words)
    assert not list(tmp_path.iterdir())


def test_the_error_of_a_size_out_of_reach_names_a_size_within(command, tmp_path):
    net = GoogleNet(num_classes=10)
    with pytest.raises(UserError, match="the smallest has 2,035"):
        TargetSize(net, (3, 32, 32), 2034, "params").check_reach()
    TargetSize(net, (3, 32, 32), 2035, "params").check_reach()
