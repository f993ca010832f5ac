"""Images of every kind: as bright as they are, the right way up; or refused by name."""

import os

import numpy as np
import pytest
from PIL import Image

from sparsereg.data import ImageFolder
from sparsereg.data.image_folder import check_memory
from sparsereg.data.images import bits_used, read_image, with_several_frames
from sparsereg.errors import UserError

RAMP = np.arange(64).reshape(8, 8)  # 0 … 63
RGB = np.repeat(RAMP[..., None] * 4, 3, axis=2).astype(np.uint8)


def save(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **how)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_sixteen_bits_are_scaled_by_those_in_use(suffix, bits, tmp_path):
    """A camera of twelve bits stores them in sixteen; clipping to eight would make all of it white,
    taking sixteen for its range all of it black."""
    highest = 2**bits - 1
    deep = (RAMP / 63 * highest).round().astype(np.uint16)
    file = save(tmp_path / f"a.{suffix}", deep)
    dim = save(tmp_path / f"b.{suffix}", (deep // 2).astype(np.uint16))
    used = bits_used([dim, file])
    assert used == bits
    expected = RAMP / 63 * 255
    assert np.abs(read_image(file, 8, used)[..., 0] - expected).max() <= 1
    assert np.abs(read_image(dim, 8, used)[..., 0] - expected / 2).max() <= 1, "one scale for all"


REFUSED = {
    "floating point": RAMP.astype(np.float32) / 63,
    "32 bits": (RAMP * 2**24).astype(np.int32),
    "NaN": np.full((8, 8), np.nan, np.float32),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_images_without_a_range_are_refused(kind, tmp_path):
    file = save(tmp_path / "a.tif", REFUSED[kind])
    with pytest.raises(UserError, match=r"a\.tif .*convert it"):
        read_image(file, 8)


def test_turned_as_the_camera_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    file = save(tmp_path / "a.png", RGB, exif=exif)
    assert np.array_equal(read_image(file, 8), np.rot90(RGB, -1))


def test_transparency_is_white(tmp_path):
    alpha = np.where(RAMP < 32, 0, 255).astype(np.uint8)[..., None]
    rgba = np.concatenate([np.zeros_like(RGB), alpha], axis=2)
    palette = Image.fromarray(np.zeros((8, 8), np.uint8), "P")
    for file in (
        save(tmp_path / "a.png", rgba),
        save(tmp_path / "b.png", Image.fromarray(rgba).convert("LA")),
        save(tmp_path / "c.png", palette, transparency=0),
    ):
        pixels = read_image(file, 8)
        assert (pixels[:4] == 255).all()
        assert (pixels[4:] == (255 if file.name == "c.png" else 0)).all()


def test_the_first_frame_of_several(tmp_path):
    black = Image.fromarray(np.zeros_like(RGB))
    file = save(tmp_path / "a.gif", Image.fromarray(RGB), save_all=True, append_images=[black])
    assert with_several_frames([file, save(tmp_path / "b.gif", black)]) == [file]
    assert read_image(file, 8).max() > 200


@pytest.fixture
def root(tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            for i in range(10):
                save(tmp_path / part / name / f"{i}.png", RGB)
    return tmp_path


def ready(root, **settings) -> ImageFolder:
    data = ImageFolder(str(root), image_size=8, batch_size=4, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


TROUBLE = {
    "a link to nowhere": lambda r: os.symlink("/nowhere", r / "train/a/l.png"),
    "a link in a circle": lambda r: os.symlink(r / "train/a/l.png", r / "train/a/l.png"),
    "a class that is a link to nowhere": lambda r: os.symlink("/nowhere", r / "train/c"),
    "a FIFO": lambda r: os.mkfifo(r / "train/a/l.png"),
    "a folder with an image's name": lambda r: (r / "train/a/l.png").mkdir(),
    "unknown suffixes": lambda r: [(r / f"train/a/{i}.jp2").touch() for i in range(11)],
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_trouble_in_a_folder(kind, root):
    TROUBLE[kind](root)
    with pytest.raises(UserError, match=r"train/[ac]") as error:
        ready(root)
    assert "\n" not in str(error.value)


def test_one_class(tmp_path):
    for part in ("train", "test"):
        save(tmp_path / part / "only" / "0.png", RGB)
    with pytest.raises(UserError, match="one class alone, only"):
        ready(tmp_path)


def test_a_folder_that_cannot_be_read(root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(root), "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied: .*train\)"):
        ready(root)


def test_images_that_no_memory_holds():
    with pytest.raises(UserError, match=r"data\.image_size=1000000: 16 images take 48,000 GB"):
        check_memory(16, 1_000_000)


def test_each_class_is_split_by_itself(root, capsys):
    """A class with one image keeps it for training, and it is said what validation lacks."""
    for part in ("train", "test"):
        save(root / part / "rare" / "0.png", RGB)
    splits = ready(root).splits
    assert splits.train.labels.bincount().tolist() == [9, 9, 1]
    assert splits.val.labels.bincount().tolist() == [1, 1]
    assert "no validation image of rare" in capsys.readouterr().err


def test_a_few_images_leave_one_for_validation(tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            for i in range(3):
                save(tmp_path / part / name / f"{i}.png", RGB)
    data = ImageFolder(str(tmp_path), image_size=8, batch_size=1, val_fraction=0.01)
    data.setup("fit")
    assert len(data.splits.val.labels) == 1 and len(data.splits.train.labels) == 5
