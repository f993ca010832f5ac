"""Stopping and going on: bit-identical, whatever stopped the run."""

import csv
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import checkpoint_path, launch, run_folder, run_process

from sparsereg.checkpoint import read_checkpoint

RUN = (  # everything that has a state: noise, shuffling, augmentation, momentum, two schedules
    "data=digits",
    "data.flip=true",
    "trainer=cpu",
    "trainer.max_epochs=4",
    "trainer.limit_train_batches=8",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "lambda_l0=2.0",
    "gate_lr=0.05",
    "seed=7",
)
SCHEDULES = {"multistep": ("scheduler.milestones=[1,3]",), "one_cycle": ("scheduler=one_cycle",)}


def stop_after(epoch: int, signum: int, *arguments: str) -> tuple[int, str]:
    """Send a signal to a run within the epoch that follows the given one."""
    process = launch("train.py", *arguments)
    out = ""
    for line in process.stdout:
        out += line
        if line.startswith(f"epoch {epoch}/"):
            time.sleep(0.4)
            process.send_signal(signum)
    error = process.stderr.read()
    process.stdout.close(), process.stderr.close()
    return process.wait(timeout=60), out + error


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


@pytest.fixture(scope="module", params=SCHEDULES)
def uninterrupted(request, tmp_path_factory) -> tuple[tuple[str, ...], Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    arguments = (*RUN, *SCHEDULES[request.param])
    result = run_process("train.py", *arguments, f"output_dir={folder}")
    assert result.code == 0, result.err
    return arguments, folder


@pytest.mark.parametrize("epoch", [1, 2])
def test_killed_and_resumed_is_bit_identical(uninterrupted, tmp_path, epoch):
    """SIGKILL between two checkpoints, then the contract's resume command and nothing else."""
    arguments, folder = uninterrupted
    code, _ = stop_after(epoch, signal.SIGKILL, *arguments, f"output_dir={tmp_path}")
    assert code == -signal.SIGKILL
    result = run_process(
        "train.py", f"ckpt_path={checkpoint_path(tmp_path)}", "resume_training=true"
    )
    assert result.code == 0, result.err

    whole = read_checkpoint(checkpoint_path(folder))
    resumed = read_checkpoint(checkpoint_path(tmp_path, 1))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops"):
        assert_same(whole[key], resumed[key], key)
    expected = metrics(run_folder(folder))
    parts = metrics(run_folder(tmp_path)) | metrics(run_folder(tmp_path, 1))
    assert len(expected) > 100
    differing = {k: (v, parts.get(k)) for k, v in expected.items() if parts.get(k) != v}
    assert not differing
    best = [
        read_checkpoint(checkpoint_path(f, v, "best.ckpt")) for f, v in ((folder, 0), (tmp_path, 1))
    ]
    assert_same(best[0]["state_dict"], best[1]["state_dict"], "best.ckpt")


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(tmp_path, signum, code):
    returned, out = stop_after(2, signum, *RUN, f"output_dir={tmp_path}")
    last = checkpoint_path(tmp_path)
    assert returned == code
    assert f"python train.py ckpt_path={last} resume_training=true" in out
    assert "Traceback" not in out
    assert read_checkpoint(last)["epoch"] == 1


def test_stopped_in_the_first_epoch(tmp_path):
    """There is a checkpoint from the first step on, and it resumes exactly too."""
    arguments = (*RUN, "trainer.max_epochs=1")
    whole = run_process("train.py", *arguments, f"output_dir={tmp_path / 'whole'}")
    assert whole.code == 0, whole.err
    process = launch("train.py", *arguments, f"output_dir={tmp_path / 'part'}")
    last = checkpoint_path(tmp_path / "part")
    while not last.exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    process.stdout.close(), process.stderr.close()
    assert read_checkpoint(last)["global_step"] == 0
    result = run_process("train.py", f"ckpt_path={last}", "resume_training=true")
    assert result.code == 0, result.err
    for key in ("state_dict", "optimizer_states"):
        assert_same(
            read_checkpoint(checkpoint_path(tmp_path / "whole"))[key],
            read_checkpoint(checkpoint_path(tmp_path / "part", 1))[key],
        )
