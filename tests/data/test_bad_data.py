"""Data and machines that are not as the settings say: one line, exit code 1, nothing written."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SHORT, assert_one_line, run_process
from PIL import Image


def test_batch_larger_than_the_training_set(command, tmp_path):
    result = command("train.py", *SHORT, "data.batch_size=5000", f"output_dir={tmp_path / 'out'}")
    assert_one_line(result, "data.batch_size=5000", "1257")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("devices", ["99", "0", "-5", "many"])
def test_devices(devices, command):
    result = command("train.py", "trainer=cpu", f"trainer.devices={devices}")
    assert_one_line(result, f"trainer.devices={devices}")


def test_devices_are_checked_before_anything_slow_is_imported():
    result = run_process("train.py", "trainer=cpu", "trainer.devices=99")
    assert_one_line(result, "trainer.devices=99")
    assert result.seconds < 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_no_gpu(trainer, command, tmp_path):
    result = command("train.py", f"trainer={trainer}", f"output_dir={tmp_path / 'out'}")
    assert_one_line(result, "trainer.accelerator=gpu", "no GPU", "trainer=cpu")


def test_unwritable_folders(command, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    result = command("train.py", *SHORT, f"output_dir={file}/out")
    assert_one_line(result, f"output_dir={file}/out", "cannot be written")
    result = command("train.py", "trainer=cpu", f"data.root={file}/data")
    assert_one_line(result, f"{file}/data")
    assert file.read_text() == "in the way"


@pytest.fixture
def offline(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def test_cifar10_absent_and_not_downloadable(offline, command, tmp_path):
    result = command("train.py", "trainer=cpu", f"data.root={tmp_path}")
    words = ["cifar-10-python.tar.gz", str(tmp_path), "data=digits"]
    assert_one_line(result, *words)


def test_cifar10_archive_corrupt(offline, command, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half a download")
    result = command("train.py", "trainer=cpu", f"data.root={tmp_path}")
    assert_one_line(result, str(archive), "damaged")
    assert archive.read_bytes() == b"half a download"


def image_folder(root: Path, train: str = "ab", test: str = "ab") -> Path:
    for part, names in (("train", train), ("test", test)):
        for name in names:
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (20, 20), (i, 0, 0)).save(root / part / name / f"{i}.png")
    return root


def with_validation(root: Path) -> None:
    shutil.copytree(image_folder(root) / "train", root / "val")


def empty(root: Path) -> None:
    (root / "train").mkdir()
    (root / "test").mkdir()


def unreadable(root: Path) -> None:
    (image_folder(root) / "train/a/2.png").write_bytes(b"no image")


FOLDERS = {
    "no root": (None, ["data.root"]),
    "missing": (lambda root: root.rmdir(), ["data.root"]),
    "empty": (empty, ["train"]),
    "unreadable image": (unreadable, ["train/a/2.png"]),
    "batch too large": (with_validation, ["data.batch_size=128"]),
    "other classes": (lambda root: image_folder(root, "ab", "bc"), ["differ", "missing: a"]),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_image_folders(kind, command, tmp_path):
    make, words = FOLDERS[kind]
    root = tmp_path / "images"
    root.mkdir()
    arguments = ["data=image_folder", "trainer=cpu", f"output_dir={tmp_path / 'out'}"]
    if make is not None:
        make(root)
        arguments.append(f"data.root={root}")
    assert_one_line(command("train.py", *arguments), *words)
    assert not (tmp_path / "out").exists()
