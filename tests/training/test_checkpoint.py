"""Checkpoints survive crashes, and wrong ones are refused."""

import errno
import os
import resource
import signal
import time

import pytest
import torch
from conftest import SMALL, checkpoint_path
from forked import FORKS, Forked

import sparsereg
from sparsereg.checkpoint import load_weights, read_checkpoint
from sparsereg.errors import UserError
from sparsereg.model.googlenet import GoogleNet
from sparsereg.training.saving import AtomicCheckpointIO


def save_for_ever(path: str) -> None:
    for i in range(10**6):
        weights = torch.full((4_000_000,), float(i))
        AtomicCheckpointIO().save_checkpoint({"i": i, "weights": weights}, path)


@pytest.mark.slow
def test_sigkill_during_the_write_leaves_the_earlier_file(tmp_path):
    """A process that does nothing but save is killed at many moments."""
    path = tmp_path / "last.ckpt"
    for attempt in range(5):
        process = FORKS.Process(target=save_for_ever, args=(str(path),))
        process.start()
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.2 + 0.03 * attempt)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        saved = torch.load(path, weights_only=True)
        assert (saved["weights"] == saved["i"]).all()


@pytest.mark.slow
def test_full_disk_keeps_the_earlier_checkpoint(tmp_path):
    """The whole program, on a disk that takes the first checkpoint but not a larger one."""
    arguments = ("train.py", *SMALL, f"output_dir={tmp_path / 'run'}")
    process = Forked(tmp_path / "said", *arguments, largest_file=4 * 10**5)
    assert process.end() == 1
    said = process.err.read_text()
    assert "error: cannot save " in said and os.strerror(errno.EFBIG) in said
    assert "the last good checkpoint is " in said
    assert "Traceback" not in said
    assert read_checkpoint(checkpoint_path(tmp_path / "run"))["global_step"] == 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_full_disk_while_overwriting(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(10)}, str(path))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match="the file saved before is intact"):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(10**5)}, str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_run_that_diverges_keeps_its_last_finite_checkpoint(command, tmp_path):
    result = command(
        "train.py",
        *SMALL,
        "optimizer=sgd",
        "trainer.max_epochs=3",
        "scheduler.milestones=[1]",
        "scheduler.gamma=1e36",
        f"output_dir={tmp_path}",
    )
    assert result.code == 1 and "Traceback" not in result.err
    assert "no longer finite after epoch 2" in result.err and "lower optimizer.lr" in result.err
    state = read_checkpoint(checkpoint_path(tmp_path))["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.slow
def test_best_is_kept_over_a_resume(command, tmp_path):
    """The best of the whole run, not of the resumed part; a tie goes to the newer epoch."""
    first = command("train.py", *SMALL, "trainer.max_epochs=2", f"output_dir={tmp_path}")
    assert first.code == 0, first.err
    last = checkpoint_path(tmp_path)
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["BestAndLast"]["best_score"] = 1.0
    torch.save(checkpoint, last)
    result = command(
        "train.py", f"ckpt_path={last}", "resume_training=true", "trainer.max_epochs=3"
    )
    assert result.code == 0, result.err
    best = [checkpoint_path(tmp_path, version, "best.ckpt").read_bytes() for version in (0, 1)]
    assert best[0] == best[1]


def test_best_is_of_a_validated_epoch(command, tmp_path):
    every_second = ("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3")
    result = command("train.py", *SMALL, *every_second, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    assert read_checkpoint(checkpoint_path(tmp_path, name="best.ckpt"))["epoch"] == 1
    assert read_checkpoint(checkpoint_path(tmp_path))["epoch"] == 2


def test_checkpoint_of_a_gpu_is_read_on_the_cpu(lenet5, tmp_path, monkeypatch):
    """A file whose tensors say that they were on cuda:0, on a machine that may have none."""
    checkpoint = read_checkpoint(lenet5)
    path = tmp_path / "gpu.ckpt"
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(checkpoint, path)
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    assert all(t.device.type == "cpu" for t in read_checkpoint(path)["state_dict"].values())
    sparsereg.load(path)


def test_load_weights_names_what_does_not_fit(trained):
    gated, ungated = read_checkpoint(trained["gated"]), read_checkpoint(trained["ungated"])
    with pytest.raises(UserError, match=r"lacks blocks\.block1\.gates\.1x1\.qz_loga"):
        load_weights(GoogleNet(), ungated)
    with pytest.raises(UserError, match="32 qz_loga unexpected"):
        load_weights(GoogleNet(without_using_gate=True), gated, new_gates=True)
    with pytest.raises(UserError, match=r"head.2.weight \(10, 128\) instead of \(7, 128\)"):
        load_weights(GoogleNet(num_classes=7), gated)
    del ungated["state_dict"]["net.stem.0.bias"]
    ungated["state_dict"]["net.extra"] = torch.ones(1)
    with pytest.raises(UserError, match=r"lacks stem.0.bias"):
        load_weights(GoogleNet(), ungated, new_gates=True)


def test_checkpoints_hold_plain_types_only(lenet5):
    plain = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)

    def check(node, path):
        assert isinstance(node, plain), f"{path}: {type(node)}"
        if isinstance(node, dict):
            for key, value in node.items():
                check(value, f"{path}.{key}")
        elif isinstance(node, list | tuple):
            for i, value in enumerate(node):
                check(value, f"{path}[{i}]")

    check(read_checkpoint(lenet5), "checkpoint")


def test_load_refuses_other_files(tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({"net": torch.nn.Linear(1, 1)}, tmp_path / "pickled.ckpt")
    for name, message in (
        ("missing.ckpt", "does not exist"),
        ("text.ckpt", "is not a checkpoint"),
        ("foreign.ckpt", "was not written by sparsereg"),
        ("pickled.ckpt", "cannot be loaded safely"),
    ):
        with pytest.raises(UserError, match=message):
            sparsereg.load(tmp_path / name)
