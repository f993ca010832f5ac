"""What keeps a run on its way: finite numbers, processes that answer; and what is left to do."""

import errno
import shutil
import types

import pytest
import torch
from conftest import SMALL, Result, assert_one_line, checkpoint_path, run_folder, summary
from hydra import compose, initialize_config_dir

from sparsereg.checkpoint import read_checkpoint
from sparsereg.commands import hints
from sparsereg.commands.overrides import CONFIG
from sparsereg.training.guards import FiniteWeights, PatientDDP, strategy_of


def find_broken(net: torch.nn.Module, loss: float) -> str | None:
    trainer = types.SimpleNamespace(callback_metrics={"val_loss": torch.tensor(loss)})
    return FiniteWeights().find_broken(trainer, types.SimpleNamespace(net=net))


def test_finite_means_weights_buffers_and_validation_loss():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    assert find_broken(net, 1.0) is None
    assert find_broken(net, float("nan")) == "the validation loss is"
    net[1].running_var[2] = float("inf")
    assert "1.running_var" in find_broken(net, 1.0)
    net[0].weight.data[0] = float("nan")
    assert "2 tensors, first 0.weight" in find_broken(net, float("nan"))


@pytest.mark.slow
def test_a_network_whose_outputs_are_nan_is_not_the_best(command, tmp_path, monkeypatch):
    """Its weights are finite: a product of two of them is not."""
    from sparsereg.training.module import L0Module

    step = L0Module.evaluation_step
    epochs = []

    def overflow(module, batch, split, accuracy):
        if module.current_epoch >= 1:
            epochs.append(module.current_epoch)
            batch = (batch[0] * float("nan"), batch[1])
        return step(module, batch, split, accuracy)

    monkeypatch.setattr(L0Module, "evaluation_step", overflow)
    result = command("train.py", *SMALL, "trainer.max_epochs=3", f"output_dir={tmp_path}")
    assert result.code == 1 and epochs, result.err
    assert "the validation loss is no longer finite after epoch 2" in result.err
    assert read_checkpoint(checkpoint_path(tmp_path, name="best.ckpt"))["epoch"] == 0


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("train", overrides=[*overrides])


def test_processes_have_a_time_limit_to_start():
    strategy = strategy_of(composed("trainer=ddp", "wait_for_processes=7"))
    assert isinstance(strategy, PatientDDP) and strategy._timeout.total_seconds() == 7
    assert isinstance(strategy_of(composed("trainer.num_nodes=2")), PatientDDP)
    assert strategy_of(composed()) == "auto"
    error = type("DistStoreError", (RuntimeError,), {})("Timed out: 1/2 clients joined")
    assert "not all processes" in hints.explain(error, "train")


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_half_precision_needs_a_gpu(command):
    assert_one_line(
        command("train.py", *SMALL, "trainer.precision=16-mixed"), "16-mixed needs a GPU", "bf16"
    )


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT, errno.ENOSPC, errno.EIO])
def test_a_disk_or_folder_that_is_gone(number):
    message = hints.explain(OSError(number, "Gone", "/runs/metrics.csv"), "train")
    assert message.startswith("Gone: /runs/metrics.csv")
    assert "Broken pipe" in hints.explain(BrokenPipeError(), "train")
    assert hints.explain(OSError(errno.EBADF, "a bug"), "train") is None


@pytest.mark.slow
def test_a_folder_renamed_midway(command, tmp_path, monkeypatch):
    """One line, the exit code, and where the last good checkpoint was."""
    from sparsereg.training.monitors import EpochLine

    def rename(self, trainer, module):
        if trainer.current_epoch == 0:
            run_folder(tmp_path).rename(tmp_path / "lightning_logs" / "old")

    monkeypatch.setattr(EpochLine, "on_train_epoch_end", rename)
    result = command("train.py", *SMALL, "trainer.max_epochs=3", f"output_dir={tmp_path}")
    assert result.code == 1 and "Traceback" not in result.err
    assert f"the last good checkpoint is {checkpoint_path(tmp_path)}, wherever" in result.err
    assert sum(line.startswith("error: ") for line in result.err.splitlines()) == 1
    assert read_checkpoint(tmp_path / "lightning_logs" / "old" / "checkpoints" / "last.ckpt")


@pytest.fixture
def unfinished(lenet5, tmp_path):
    """A run that was killed between its last epoch and its summary."""
    run = run_folder(tmp_path)
    shutil.copytree(lenet5.parents[1], run)
    (run / "summary.json").unlink()
    return run / "checkpoints" / "last.ckpt"


def resume(command, last) -> Result:
    return command("train.py", f"ckpt_path={last}", "resume_training=true")


@pytest.mark.slow
def test_a_run_killed_before_its_results_gets_them(unfinished, command, lenet5, tmp_path):
    result = resume(command, unfinished)
    assert result.code == 0, result.err
    results, expected = summary(tmp_path, 1), summary(lenet5.parents[3])
    same = ("val_acc", "test_acc", "L_C0", "sparsity", "params")
    assert {key: results[key] for key in same} == {key: expected[key] for key in same}
    for name in ("last.ckpt", "best.ckpt"):
        own, earlier = checkpoint_path(tmp_path, 1, name), unfinished.with_name(name)
        assert own.read_bytes() == earlier.read_bytes()
    again = resume(command, checkpoint_path(tmp_path, 1))
    assert_one_line(again, "nothing left to train")


@pytest.mark.slow
def test_what_comes_after_the_cut_is_done_too(unfinished, command, tmp_path):
    checkpoint = torch.load(unfinished, weights_only=True)
    checkpoint["sparsereg"]["config"]["finetune_epochs"] = 1
    torch.save(checkpoint, unfinished)
    result = resume(command, unfinished)
    assert result.code == 0, result.err
    assert summary(tmp_path, 1) and summary(tmp_path, 2)["val_acc"] > 0
    assert (run_folder(tmp_path, 1) / "checkpoints" / "last_compact" / "compact.pt").exists()
    again = resume(command, checkpoint_path(tmp_path, 1))
    assert_one_line(again, "nothing left to train")


def test_a_droprate_that_would_be_infinite(command):
    assert_one_line(command("train.py", "droprate_init=1e-320"), "droprate_init=", "above 0")
