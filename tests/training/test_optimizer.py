"""What the optimizer is given: clipped gradients, rates and decay of weights and gates."""

import pytest
import torch
from conftest import SMALL, checkpoint_path, events, run_folder

from sparsereg.checkpoint import read_checkpoint


@pytest.mark.filterwarnings("ignore:.*faster kernels")  # not every processor has them
def test_gradients_are_clipped_by_their_norm(command, dense, tmp_path):
    """In bfloat16 and with a fused optimizer, as on a processor that has it. Plain steps of rate 1
    are as long as the gradients."""
    plain = ("optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "optimizer.nesterov=false")
    result = command(
        "train.py",
        *SMALL,
        *plain,
        f"ckpt_path={dense}",
        "without_using_gate=true",
        "optimizer.weight_decay=0",
        "trainer.limit_train_batches=1",
        "trainer.precision=bf16-mixed",
        "trainer.gradient_clip_val=0.01",
        f"output_dir={tmp_path}",
    )
    assert result.code == 0, result.err
    before, after = (
        torch.cat([tensor.flatten() for tensor in read_checkpoint(path)["state_dict"].values()])
        for path in (dense, checkpoint_path(tmp_path))
    )
    assert (after - before).norm() == pytest.approx(0.01, rel=1e-3)


def test_gates_have_their_own_rate_and_no_decay(command, tmp_path):
    result = command("train.py", *SMALL, "gate_lr=0.05", "optimizer=sgd", f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    checkpoint = read_checkpoint(checkpoint_path(tmp_path))
    weights, gates = checkpoint["optimizer_states"][0]["param_groups"]
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 5e-4)
    assert (gates["lr"], gates["weight_decay"]) == (0.05, 0.0)
    named = [name for name in checkpoint["state_dict"] if name.endswith("qz_loga")]
    assert len(gates["params"]) == len(named) > 1


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_one_cycle_peaks_at_each_groups_rate(command, tmp_path, optimizer):
    result = command(
        "train.py",
        *SMALL,
        f"optimizer={optimizer}",
        "scheduler=one_cycle",
        "scheduler.pct_start=0.5",
        "optimizer.lr=0.004",
        "gate_lr=0.02",
        "trainer.max_epochs=2",
        "callbacks.learning_rate.logging_interval=step",
        f"output_dir={tmp_path}",
    )
    assert result.code == 0, result.err
    log = events(run_folder(tmp_path))
    name = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}[optimizer]
    for group, peak in (("weights", 0.004), ("gates", 0.02)):
        rates = [event.value for event in log.Scalars(f"train/lr-{name}/{group}")]
        assert max(rates) == pytest.approx(peak) and rates[0] == pytest.approx(peak / 25)
        assert rates[-1] < rates[0]
