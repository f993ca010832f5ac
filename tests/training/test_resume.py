"""Stopping and going on: bit-identical, whatever stopped the run."""

import csv
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import SMALL, checkpoint_path, launch, run_folder, summary
from forked import Forked

from sparsereg.checkpoint import read_checkpoint
from sparsereg.commands.command_line import stop
from sparsereg.training.saving import BestAndLast

pytestmark = pytest.mark.slow

RUN = (  # everything that has a state: noise, shuffling, augmentation, momentum, two schedules
    "data=digits",
    "model=lenet5",  # a fifth of the time
    "data.batch_size=32",
    "data.flip=true",
    "trainer=cpu",
    "trainer.max_epochs=4",
    "trainer.limit_train_batches=8",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "seed=7",
)
VARIANTS = {
    "multistep": (
        *("gate_lr=0.05", "scheduler.milestones=[1,3]", "lambda_l0=2.0", "lambda_warmup=3"),
    ),
    "target": (  # whose multiplier has risen, and restarted, when the run is killed
        *("gate_lr=0.05", "scheduler=one_cycle", "target_sparsity=0.4", "cost=params"),
        *("dual_lr=5.0", "target_warmup=2", "settle_epochs=1.5"),
    ),
    "target by layer": (
        *("gate_lr=0.05", "scheduler=constant", "cost=weights"),
        "target_sparsity={conv*:0.4,fc1:0.2}",
        *("dual_lr=5.0", "target_warmup=2", "settle_epochs=1.5", "loga_bounds=[-4,4]"),
    ),
    "modern": (  # averages its weights
        *("without_using_gate=true", "recipe=modern", "optimizer.lr=0.01"),
        "trainer.accumulate_grad_batches=2",
    ),
}


LONG_EPOCHS = ("trainer.limit_train_batches=39",)  # in which a signal is in time
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops")
AVERAGED = ("current_model_state", "averaging_state")


def stop_after(epoch: int, signum: int, folder: Path, *arguments: str) -> tuple[int, str]:
    """Send a signal to a run once the checkpoint of an epoch is there, within the next one."""
    process = Forked(folder.with_name("said"), "train.py", *arguments, f"output_dir='{folder}'")
    for line in process.lines():
        if line.startswith(f"epoch {epoch}/"):
            while read_checkpoint(checkpoint_path(folder))["epoch"] < epoch - 1:
                time.sleep(0.01)
            time.sleep(0.02)
            process.signal(signum)
    return process.end(), process.out.read_text() + process.err.read_text()


def metrics(folder: Path) -> dict[tuple, float]:
    """(column, step) -> value of everything a run logged, times excepted."""
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {
        (column, row["step"]): value
        for row in rows
        for column, value in row.items()
        if value and column not in ("step", "epoch", "samples/s")
    }


def assert_same(a, b, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def resume(command, last: Path) -> None:
    """The contract's command and nothing else."""
    result = command("train.py", f"ckpt_path={last}", "resume_training=true")
    assert result.code == 0, result.err


def resume_and_kill(last: Path, new: Path) -> None:
    """Go on from `last`, with SIGKILL as soon as there is a `new` checkpoint, of the first step."""
    resumed = ("train.py", f"ckpt_path={last}", "resume_training=true")
    process = Forked(last.parents[4] / "killed", *resumed)
    while not new.exists() and process.running():
        time.sleep(0.01)
    process.signal(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_is_bit_identical(command, tmp_path, variant):
    """SIGKILL between two checkpoints; once more before the resumed run has completed an epoch."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = (*RUN, *VARIANTS[variant])
    result = command("train.py", *arguments, f"output_dir={whole}")
    assert result.code == 0, result.err
    code, _ = stop_after(2, signal.SIGKILL, parts, *arguments)
    assert code == -signal.SIGKILL
    resume_and_kill(checkpoint_path(parts), checkpoint_path(parts, 1))
    resume(command, checkpoint_path(parts, 1))
    assert_same_runs(whole, parts, [0, 2], averaged=variant == "modern")
    if variant == "multistep":
        resume(command, checkpoint_path(parts))
        assert_same_runs(whole, parts, [0, 3])


def assert_same_runs(whole: Path, parts: Path, versions: list[int], averaged: bool = False) -> None:
    """The last of these versions has the same checkpoints, and all together the same metrics."""
    for name, keys in (("last.ckpt", (*STATES, *AVERAGED)), ("best.ckpt", ("state_dict",))):
        expected = read_checkpoint(checkpoint_path(whole, name=name))
        resumed = read_checkpoint(checkpoint_path(parts, versions[-1], name))
        assert all((key in expected) == averaged for key in AVERAGED)
        for checkpoint in (expected, resumed):
            assert checkpoint["callbacks"].pop("TrainingTime")["time_elapsed"]["train"] > 0
        for key in keys:
            assert_same(expected.get(key), resumed.get(key), f"{name}: {key}")
    expected, found = metrics(run_folder(whole)), {}
    for version in versions:
        found |= metrics(run_folder(parts, version))
    assert len(expected) > 30
    differing = {k: (v, found.get(k)) for k, v in expected.items() if found.get(k) != v}
    assert not differing


def test_a_checkpoint_of_the_flat_layout(command, lenet5, tmp_path):
    """Its settings name classes where they were before the package had folders."""
    checkpoint = torch.load(lenet5, weights_only=True)
    config = checkpoint["sparsereg"]["config"]
    config["scheduler"]["_target_"] = "sparsereg.schedules.multistep"
    config["loss"]["_target_"] = "sparsereg.loss.ClassificationLoss"
    config["callbacks"]["checkpoints"]["_target_"] = "sparsereg.training.saving.BestAndLast"
    last = tmp_path / "last.ckpt"
    torch.save(checkpoint, last)
    more = ("trainer.max_epochs=2", f"output_dir={tmp_path}")
    result = command("train.py", f"ckpt_path={last}", "resume_training=true", *more)
    assert result.code == 0, result.err
    assert read_checkpoint(checkpoint_path(tmp_path))["epoch"] == 1


def test_stopped_while_a_complete_run_is_taken_over(command, lenet5, tmp_path, monkeypatch):
    """No last.ckpt without its best.ckpt beside it: a run that went on from there had lost it."""
    adopt = BestAndLast.adopt
    monkeypatch.setattr(
        BestAndLast, "adopt", lambda *files: (adopt(*files), stop(signal.SIGINT, None))
    )
    shutil.copytree(run_folder(lenet5.parents[3]), run_folder(tmp_path))
    (run_folder(tmp_path) / "summary.json").unlink()  # stopped before it was evaluated
    resumed = (f"ckpt_path={checkpoint_path(tmp_path)}", "resume_training=true")
    assert command("train.py", *resumed).code == 130
    checkpoints = sorted(checkpoint_path(tmp_path, 1).parent.iterdir())
    assert [path.name for path in checkpoints] == ["best.ckpt"]
    assert checkpoints[0].read_bytes() == lenet5.with_name("best.ckpt").read_bytes()


def test_terminated(tmp_path):
    """As the scheduler of a cluster does it."""
    code, out = stop_after(2, signal.SIGTERM, tmp_path / "run", *RUN, *LONG_EPOCHS)
    last = checkpoint_path(tmp_path / "run")
    assert code == 143
    assert f"python train.py ckpt_path={last} resume_training=true" in out
    assert "Traceback" not in out
    assert read_checkpoint(last)["epoch"] == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_interrupted(command, tmp_path):
    """By Ctrl-C, in a folder of any name: a shell understands the command that is printed."""
    folder = tmp_path / "a [b]=c"
    code, out = stop_after(1, signal.SIGINT, folder, *RUN, *LONG_EPOCHS, "trainer.max_epochs=2")
    assert code == 130 and "Traceback" not in out
    line = next(line for line in out.splitlines() if line.startswith("stopped; to go on: python "))
    result = command(*shlex.split(line.removeprefix("stopped; to go on: python ")))
    assert result.code == 0, result.err
    assert read_checkpoint(checkpoint_path(folder, 1))["epoch"] == 1


def test_stopped_in_the_first_epoch(command, tmp_path):
    """There is a checkpoint from the first step on, and it resumes exactly too."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = (*RUN, *LONG_EPOCHS, "trainer.max_epochs=1")
    result = command("train.py", *arguments, f"output_dir={whole}")
    assert result.code == 0, result.err
    process = Forked(tmp_path / "said", "train.py", *arguments, f"output_dir={parts}")
    last = checkpoint_path(parts)
    while not last.exists() and process.running():
        time.sleep(0.001)
    process.signal(signal.SIGINT)
    assert process.end() == 130
    assert read_checkpoint(last)["global_step"] == 0
    resume(command, last)
    for key in ("state_dict", "optimizer_states"):
        assert_same(
            read_checkpoint(checkpoint_path(whole))[key],
            read_checkpoint(checkpoint_path(parts, 1))[key],
        )


def test_distributed_run_stopped_by_a_signal(tmp_path):
    distributed = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    arguments = (*RUN, "trainer.limit_train_batches=4", "trainer.max_epochs=50")
    process = launch("train.py", *arguments, *distributed, f"output_dir={tmp_path}")
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert (out + err).count("stopped; to go on") == 1 and "Traceback" not in out + err
    read_checkpoint(checkpoint_path(tmp_path))


def test_the_tested_checkpoint_stays_the_same_and_the_time_goes_on(command, tmp_path):
    last = "callbacks.checkpoints.evaluate=last"
    assert command("train.py", *SMALL, last, f"output_dir={tmp_path}").code == 0
    resumed = (f"ckpt_path={checkpoint_path(tmp_path)}", "resume_training=true")
    more = (*resumed, "trainer.max_epochs=2", "trainer.accelerator=cpu", f"output_dir={tmp_path}")
    assert command("train.py", *more).code == 0
    results = [summary(tmp_path, version) for version in (0, 1)]
    assert results[1]["checkpoint"] == "checkpoints/last.ckpt"
    assert results[1]["train_seconds"] > results[0]["train_seconds"]  # of both parts
