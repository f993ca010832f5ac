"""Stopping and going on: bit-identical, whatever stopped the run."""

import csv
import shlex
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
    "gate_lr=0.05",
    "seed=7",
)
VARIANTS = {
    "multistep": ("scheduler.milestones=[1,3]", "lambda_l0=2.0", "lambda_warmup=3"),
    "target": (  # whose multiplier has risen, and restarted, when the run is killed
        *("scheduler=one_cycle", "target_sparsity=0.4", "cost=params"),
        *("dual_lr=5.0", "target_warmup=2", "settle_epochs=1.5"),
    ),
    "modern": (  # averages its weights
        *("without_using_gate=true", "recipe=modern", "optimizer.lr=0.01"),
        "trainer.accumulate_grad_batches=2",
    ),
}


STATES = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops")
AVERAGED = ("current_model_state", "averaging_state")


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


@pytest.fixture(scope="module", params=VARIANTS)
def uninterrupted(request, tmp_path_factory) -> tuple[tuple[str, ...], Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    arguments = (*RUN, *VARIANTS[request.param])
    result = run_process("train.py", *arguments, f"output_dir={folder}")
    assert result.code == 0, result.err
    return arguments, folder


def test_killed_and_resumed_is_bit_identical(uninterrupted, tmp_path):
    """SIGKILL between two checkpoints, then the contract's resume command and nothing else."""
    arguments, folder = uninterrupted
    code, _ = stop_after(2, signal.SIGKILL, *arguments, f"output_dir={tmp_path}")
    assert code == -signal.SIGKILL
    result = run_process(
        "train.py", f"ckpt_path={checkpoint_path(tmp_path)}", "resume_training=true"
    )
    assert result.code == 0, result.err

    whole = read_checkpoint(checkpoint_path(folder))
    resumed = read_checkpoint(checkpoint_path(tmp_path, 1))
    assert all((key in whole) == ("recipe=modern" in arguments) for key in AVERAGED)
    for key in (*STATES, *AVERAGED):
        assert_same(whole.get(key), resumed.get(key), key)
    expected = metrics(run_folder(folder))
    parts = metrics(run_folder(tmp_path)) | metrics(run_folder(tmp_path, 1))
    assert len(expected) > 30
    differing = {k: (v, parts.get(k)) for k, v in expected.items() if parts.get(k) != v}
    assert not differing
    best = [
        read_checkpoint(checkpoint_path(f, v, "best.ckpt")) for f, v in ((folder, 0), (tmp_path, 1))
    ]
    assert_same(best[0]["state_dict"], best[1]["state_dict"], "best.ckpt")


def test_killed_again_in_the_last_epoch(uninterrupted, tmp_path):
    """A resumed run that is killed before it completes an epoch is resumed as well."""
    arguments, folder = uninterrupted
    stop_after(3, signal.SIGKILL, *arguments, f"output_dir={tmp_path}")
    resume = (f"ckpt_path={checkpoint_path(tmp_path)}", "resume_training=true")
    process = launch("train.py", *resume)
    while not checkpoint_path(tmp_path, 1).exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    again = f"ckpt_path={checkpoint_path(tmp_path, 1)}"
    result = run_process("train.py", again, "resume_training=true")
    assert result.code == 0, result.err
    whole = read_checkpoint(checkpoint_path(folder))
    resumed = read_checkpoint(checkpoint_path(tmp_path, 2))
    for key in STATES:
        assert_same(whole[key], resumed[key], key)


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


def test_the_printed_command_is_one_that_a_shell_understands(tmp_path):
    folder = tmp_path / "a [b]=c"
    arguments = (*RUN[:3], "trainer.max_epochs=2", *RUN[4:], f"output_dir='{folder}'")
    code, out = stop_after(1, signal.SIGINT, *arguments)
    assert code == 130
    line = next(line for line in out.splitlines() if line.startswith("stopped; to go on: python "))
    words = shlex.split(line.removeprefix("stopped; to go on: python "))
    result = run_process(*words)
    assert result.code == 0, result.err


def test_distributed_run_stopped_by_a_signal(tmp_path):
    distributed = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    arguments = ("data=digits", "trainer.limit_train_batches=4", "trainer.max_epochs=50")
    code, out = stop_after(1, signal.SIGTERM, *arguments, *distributed, f"output_dir={tmp_path}")
    assert code == 143 and out.count("stopped; to go on") == 1 and "Traceback" not in out
    read_checkpoint(checkpoint_path(tmp_path))
