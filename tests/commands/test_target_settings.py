"""Settings that contradict a target, or that it cannot be reached with."""

import math

import pytest
from conftest import SHORT, SMALL, assert_one_line

TARGET = "target_sparsity=0.7"
CONTRADICTIONS = [  # settings that exclude one another, what the line must say
    ((TARGET, "lambda_l0=0.5"), ["lambda_l0=0.5", TARGET, "leave one of them out"]),
    ((TARGET, "without_using_gate=true"), [TARGET, "without_using_gate=false"]),
    (("gate_reductions=true", "without_using_gate=true"), ["gate_reductions=true", "needs gates"]),
    ((TARGET, "lambda_warmup=2"), ["lambda_warmup=2", "target_warmup"]),
    (
        (TARGET, "trainer.max_epochs=5", "target_warmup=3", "settle_epochs=2.5"),
        ["target_warmup=3", "last 2.5 epochs", "trainer.max_epochs=5"],
    ),
    ((TARGET, "round_to=8"), ["round_to=8", TARGET, "miss"]),
    ((TARGET, "min_open_channels=0"), ["min_open_channels=0", TARGET]),
    ((TARGET, "trainer.max_epochs=5", "target_warmup=4"), ["target_warmup=4", "last 2 epochs"]),
    (
        (TARGET, "trainer.max_epochs=9", "trainer.check_val_every_n_epoch=5"),
        ["trainer.check_val_every_n_epoch=5", "3.6", "best.ckpt"],
    ),
    (("lambda_warmup=2", "without_using_gate=true"), ["lambda_warmup=2", "needs gates"]),
    (("keep_gates=true", "ckpt_path={gated}", "droprate_init=0.05"), ["droprate_init=0.05"]),
    (
        ("keep_gates=true", "ckpt_path={gated}", "gate_reductions=true", "data=digits"),
        ["reductions have no gates", "gate_reductions=false"],
    ),
    (
        ("keep_gates=true", "ckpt_path={gated}", "model.gate_stem=true", "data=digits"),
        ["stem has no gates", "model.gate_stem=false"],
    ),
    (
        ("resume_training=true", "ckpt_path={gated}", "trainer.max_epochs=9", TARGET),
        [TARGET, "null", "resume_training=false"],
    ),
]


@pytest.mark.parametrize("arguments, words", CONTRADICTIONS)
def test_contradictions(command, trained, tmp_path, arguments, words):
    arguments = [argument.format(**trained) for argument in arguments]
    result = command("train.py", *arguments, f"output_dir={tmp_path}")
    assert_one_line(result, *words)
    assert not list(tmp_path.iterdir())


def test_an_experiments_lambda_gives_way_to_a_target(command, tmp_path):
    """Only the λ of the command line contradicts it."""
    arguments = ("experiment=demo", "scheduler=multistep", "target_sparsity=0.5")
    result = command("train.py", *SMALL, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err


def test_the_highest_sparsity_is_in_the_error(command, tmp_path):
    arguments = ("target_sparsity=0.995", "cost=params", f"output_dir={tmp_path}")
    result = command("train.py", *SHORT, *arguments)
    smallest = 1920 + 67 + 7 * 4 + 20  # stem, eight blocks of one channel, and the head
    highest = math.floor((1 - smallest / 260_650) * 1e4) / 1e4
    assert_one_line(result, "target_sparsity=0.995", str(highest))
    assert not (tmp_path / "lightning_logs").exists()


def test_more_open_channels_than_there_are(command, tmp_path):
    arguments = ("min_open_channels=17", "gate_reductions=true", f"output_dir={tmp_path}")
    result = command("train.py", *SHORT, *arguments)
    assert_one_line(result, "min_open_channels=17", "at most 16")
    assert not list(tmp_path.iterdir())


def test_ungated_checkpoint_has_no_gates_to_keep(command, trained):
    result = command("train.py", *SHORT, f"ckpt_path={trained['ungated']}", "keep_gates=true")
    assert_one_line(result, "keep_gates=true", "has no gates")
