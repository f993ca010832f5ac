"""λ by hand: what it weighs, its warm-up, and what becomes of the gates under it."""

import pytest
from conftest import SHORT, SMALL, events, run_folder, summary


def test_penalty_on_macs_and_its_warmup(command, tmp_path):
    """The loss is the cross-entropy and λ · expected multiply-adds; λ rises over two epochs."""
    arguments = ("cost=macs", "lambda_l0=3.0", "lambda_warmup=2", "trainer.max_epochs=3")
    result = command("train.py", *SMALL, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    log = events(run_folder(tmp_path))
    price = [event.value for event in log.Scalars("gates/lambda_l0")]
    assert price == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3, 3])
    macs = [1 - event.value for event in log.Scalars("gates/expected_sparsity/macs")]
    for epoch in range(3):
        steps = range(3 * epoch, 3 * epoch + 3)
        penalty = sum(price[step] * macs[step] for step in steps) / 3
        loss, ce = (log.Scalars(tag)[epoch].value for tag in ("train/loss", "train/ce"))
        assert loss - ce == pytest.approx(penalty, abs=1e-5)


STRONG = ("lambda_l0=1e4", "gate_lr=2.0", "trainer.limit_train_batches=8")


@pytest.mark.slow
def test_a_block_keeps_a_channel(command, tmp_path):
    """However large λ."""
    result = command("train.py", *SHORT, *STRONG, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    results = summary(tmp_path)
    assert 0 < results["params"] < 10_000
    assert (
        min(sum(list(results["open_channels"].values())[i : i + 4]) for i in range(0, 32, 4)) == 1
    )


@pytest.mark.slow
def test_without_that_guard_the_collapse_is_said(command, tmp_path):
    arguments = (*STRONG, "min_open_channels=0", f"output_dir={tmp_path}")
    with pytest.warns(UserWarning, match="ignores its input.*min_open_channels=1"):
        result = command("train.py", *SMALL, *arguments)
    assert result.code == 0, result.err
    assert summary(tmp_path)["params"] == 0


HUNDRED_STEPS = ("data.batch_size=4", "trainer.limit_train_batches=100", "lambda_l0=5.0")


@pytest.mark.slow
def test_still_gates_are_said(command, tmp_path):
    arguments = (*HUNDRED_STEPS, "gate_lr=1e-6", "trainer.limit_val_batches=1")
    with pytest.warns(UserWarning, match="the gates are not moving: after 10 of 100 steps") as said:
        result = command("train.py", *SMALL, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    assert "raise gate_lr (1e-06 now) or lambda_l0 (5 now)" in str(said[0].message)


@pytest.mark.slow
def test_moving_gates_are_not(command, tmp_path):
    """Warnings are errors in this process."""
    arguments = (*HUNDRED_STEPS, "gate_lr=0.05", "trainer.limit_val_batches=1")
    result = command("train.py", *SMALL, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
