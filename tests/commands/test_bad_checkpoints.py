"""Checkpoints that are damaged, foreign, or do not go with the settings: one line, exit code 1."""

import zipfile
from pathlib import Path

import pytest
import torch
from conftest import SHORT, SMALL, assert_one_line, checkpoint_path, run_process


def flip_a_bit(path: Path) -> None:
    """In the middle of the largest tensor."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:5000]), "only the beginning"),
    "text": (lambda p: p.write_text("weights: 1"), "is not a checkpoint"),
    "flipped bit": (flip_a_bit, "is damaged"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
}


@pytest.mark.parametrize("script", ["train.py", "test.py"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints(kind, script, command, lenet5, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    path.write_bytes(lenet5.read_bytes())
    damage, message = DAMAGE[kind]
    damage(path)
    before = path.read_bytes() if path.is_file() else None
    monkeypatch.chdir(tmp_path)
    result = command(script, f"ckpt_path={path}")
    assert_one_line(result, f"ckpt_path={path}", message)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_damage_is_said_before_anything_slow_is_imported(script, lenet5, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(lenet5.read_bytes())
    flip_a_bit(path)
    result = run_process(script, f"ckpt_path={path}", cwd=tmp_path)
    assert_one_line(result, f"ckpt_path={path}", "is damaged")
    assert result.seconds < 3


def save_changed(source: Path, target: Path, change) -> Path:
    checkpoint = torch.load(source, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


def other_classes(checkpoint: dict) -> None:
    checkpoint["state_dict"]["net.fc2.weight"] = torch.zeros(7, 500)
    checkpoint["state_dict"]["net.fc2.bias"] = torch.zeros(7)


def other_network(checkpoint: dict) -> None:
    checkpoint["state_dict"] = {"net.stem.0.weight": torch.zeros(1)}


def other_widths(checkpoint: dict) -> None:
    checkpoint["state_dict"]["net.conv1.weight"] = torch.zeros(32, 3, 5, 5)


FOREIGN = {
    "other classes": (other_classes, ["fc2.weight (7, 500) instead of (10, 500)"]),
    "other widths": (other_widths, ["conv1.weight (32, 3, 5, 5) instead of (20, 3, 5, 5)"]),
    "other network": (other_network, ["lacks conv1.bias", "more"]),
    "hollow": (lambda c: c.update(sparsereg=None), ["was not written by sparsereg"]),
    "no loops": (lambda c: c.pop("loops"), ["was not written by sparsereg"]),
    "foreign": (lambda c: c.pop("sparsereg"), ["was not written by sparsereg"]),
    "objects": (lambda c: c.update(x=torch.nn.Linear(1, 1)), ["cannot be loaded safely"]),
}


@pytest.mark.parametrize("how", ["fine-tune", "resume", "test"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_checkpoints(kind, how, command, lenet5, tmp_path):
    change, words = FOREIGN[kind]
    path = save_changed(lenet5, tmp_path / "last.ckpt", change)
    if kind == "other network" and how == "resume":
        words = ["without_using_gate"]  # its keys say that it has no gates
    arguments = [f"ckpt_path={path}"]
    if how != "test":
        arguments += [*SMALL, f"resume_training={str(how == 'resume').lower()}"]
        arguments += ["trainer.max_epochs=3", f"output_dir={tmp_path / 'out'}"]
    result = command("test.py" if how == "test" else "train.py", *arguments)
    assert_one_line(result, *words)
    assert not (tmp_path / "out").exists()


RESUME = [
    ("gated", ["without_using_gate=true"], ["without_using_gate=true", "with gates"]),
    ("ungated", ["without_using_gate=false"], ["without_using_gate=false", "without gates"]),
    ("gated", ["trainer.max_epochs=1"], ["nothing left to train", "trainer.max_epochs=1"]),
    ("gated", ["optimizer.lr=0.5"], ["optimizer.lr=0.5", "0.001"]),
    ("gated", ["optimizer=sgd"], ["optimizer=SGD", "AdamW"]),
    ("gated", ["scheduler=one_cycle"], ["scheduler=one_cycle", "multistep"]),
    ("gated", ["scheduler.gamma=0.2"], ["scheduler.gamma=0.2"]),
    ("gated", ["model.sampling=per_batch"], ["model.sampling=per_batch", "per_sample"]),
]


@pytest.mark.parametrize("name, change, words", RESUME, ids=[" ".join(c) for _, c, _ in RESUME])
def test_resume_with_other_settings(name, change, words, command, lenet5, dense, tmp_path):
    if not any("max_epochs" in argument for argument in change):
        change = [*change, "trainer.max_epochs=3"]
    result = command(
        "train.py",
        f"ckpt_path={lenet5 if name == 'gated' else dense}",
        "resume_training=true",
        f"output_dir={tmp_path / 'out'}",
        *change,
    )
    assert_one_line(result, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_resume_one_cycle_with_other_length(command, tmp_path):
    one_cycle = (*SMALL, "scheduler=one_cycle", "scheduler.pct_start=0.5", f"output_dir={tmp_path}")
    assert command("train.py", *one_cycle).code == 0
    last = checkpoint_path(tmp_path)
    before = last.read_bytes()
    result = command(
        "train.py", f"ckpt_path={last}", "resume_training=true", "trainer.max_epochs=2"
    )
    assert_one_line(result, "planned for 3 steps", "has 6", "trainer.max_epochs")
    assert last.read_bytes() == before


@pytest.mark.parametrize(
    "arguments, what, hint",
    [
        ((), "lacks", "model=lenet5"),
        (("model=resnet20",), "lacks", "model=lenet5"),
        (("model=lenet5", "data.image_size=32"), "other widths", "data.image_size=16"),
        (("data.image_size=32",), "lacks", "model=lenet5 data.image_size=16"),
    ],
)
def test_what_to_choose_for_a_checkpoint(command, lenet5, tmp_path, arguments, what, hint):
    more = (f"ckpt_path={lenet5}", f"output_dir={tmp_path}", *arguments)
    result = command("train.py", *SHORT, *more)
    assert_one_line(result, what)
    assert result.err.strip().endswith(f"; it was trained with {hint}")
    assert not list(tmp_path.iterdir())


def test_data_of_other_images(command, lenet5):
    result = command("test.py", f"ckpt_path={lenet5}", "data=digits", "data.image_size=8")
    assert_one_line(result, "shape (3, 8, 8)", "trained on (3, 16, 16)", "choose its data")


def test_gated_checkpoint_for_a_network_without_gates(command, lenet5, tmp_path):
    result = command(
        "train.py",
        *SMALL,
        f"ckpt_path={lenet5}",
        "without_using_gate=true",
        f"output_dir={tmp_path / 'out'}",
    )
    assert_one_line(result, "has gates", "qz_loga", "without_using_gate=false")


@pytest.mark.parametrize("seconds", ["x", float("nan"), float("inf"), -1.0])
def test_a_time_that_cannot_be(seconds, command, lenet5, tmp_path):
    """Said before the training, which it would spoil the summary of."""

    def change(checkpoint: dict) -> None:
        checkpoint["callbacks"]["TrainingTime"]["time_elapsed"]["train"] = seconds

    last = save_changed(lenet5, tmp_path / "last.ckpt", change)
    more = ("resume_training=true", "trainer.max_epochs=2", f"output_dir={tmp_path}")
    assert_one_line(command("train.py", f"ckpt_path={last}", *more), "training state")
