"""Reading, caching and errors of a folder of images."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from sparsereg.data import ImageFolder, image_folder
from sparsereg.errors import UserError


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """20 training and 4 test images of two classes."""
    root = tmp_path / "images"
    for part, count in (("train", 10), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(root / part / name / f"{i}.png", seed=100 * label + i)
    return root


def ready(root: Path, **kwargs) -> ImageFolder:
    data = ImageFolder(str(root), batch_size=4, **{"image_size": 8, **kwargs})
    data.prepare_data()
    data.setup("fit")
    return data


def caches(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.pt"))


def test_images_labels_and_classes(root):
    data = ready(root)
    assert data.classes == ["cat", "dog"] and data.image_shape == (3, 8, 8)
    sizes = [len(p.labels) for p in (data.splits.train, data.splits.val, data.splits.test)]
    assert sizes == [18, 2, 4]
    assert data.splits.test.labels.tolist() == [0, 0, 1, 1]
    image = Image.open(root / "test" / "dog" / "1.png")
    expected = TF.pil_to_tensor(TF.center_crop(TF.resize(image, 8), 8))
    assert torch.equal(data.splits.test.images[3], expected)


def test_images_of_the_right_size_are_not_touched(tmp_path):
    for part in ("train", "test"):
        for i in range(5):
            write_image(tmp_path / part / "a" / f"{i}.png", seed=i, size=(8, 8))
            write_image(tmp_path / part / "b" / f"{i}.png", seed=i, size=(8, 8))
    images = ready(tmp_path).splits.test.images
    for i in range(5):
        pixels = np.asarray(Image.open(tmp_path / "test" / "a" / f"{i}.png"))
        assert np.array_equal(images[i].permute(1, 2, 0), pixels)


def test_statistics_are_those_of_the_training_part_alone(root):
    data = ready(root)
    scaled = data.splits.train.images.double() / 255
    assert data.splits.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert data.splits.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())
    assert data.splits.mean == ready(root).splits.mean  # from the cache


def test_a_validation_folder_is_used_where_there_is_one(root):
    for name in ("cat", "dog"):
        write_image(root / "val" / name / "0.png", seed=7)
    splits = ready(root).splits
    assert len(splits.train.labels) == 20 and splits.val.labels.tolist() == [0, 1]


def test_the_split_is_the_same_for_every_seed(root, tmp_path):
    a = ready(root, seed=1, cache_dir=str(tmp_path / "a"))
    b = ready(root, seed=2, cache_dir=str(tmp_path / "b"))
    assert torch.equal(a.splits.val.images, b.splits.val.images)


def test_modes_suffixes_and_hidden_files(root):
    cats = root / "test" / "cat"
    for mode, name in (("L", "5.JPG"), ("RGBA", "6.tiff"), ("P", "7.gif"), ("CMYK", "8.jpeg")):
        write_image(cats / name, mode=mode)
    write_image(cats / "9.webp")
    (cats / ".hidden.png").write_bytes(b"not an image")
    (cats / "Thumbs.db").write_bytes(b"not an image")
    (root / "test" / ".ipynb_checkpoints").mkdir()
    assert ready(root).splits.test.labels.tolist() == [0] * 7 + [1] * 2


def decoded(monkeypatch) -> list[int]:
    """Counts the images of every later decoding."""
    counts, decode = [], image_folder.decode
    monkeypatch.setattr(
        image_folder, "decode", lambda files, *how: counts.append(len(files)) or decode(files, *how)
    )
    return counts


def test_the_second_start_reads_the_cache(root, monkeypatch):
    first, counts = ready(root), decoded(monkeypatch)
    second = ready(root)
    assert counts == []
    assert torch.equal(first.splits.train.images, second.splits.train.images)
    assert torch.equal(first.splits.val.labels, second.splits.val.labels)
    assert first.record() == second.record()


@pytest.mark.parametrize("change", ["touched", "rewritten", "added", "removed"])
def test_a_changed_folder_is_decoded_again(root, monkeypatch, change):
    ready(root)
    before, counts = caches(root), decoded(monkeypatch)
    file = root / "train" / "cat" / "0.png"
    if change == "touched":
        os.utime(file, ns=(1, 1))
    elif change == "rewritten":
        write_image(file, size=(50, 50))
    elif change == "added":
        write_image(root / "train" / "cat" / "new.png")
    else:
        file.unlink()
    train = {"added": 21, "removed": 19}.get(change, 20)
    splits = ready(root).splits
    assert counts == [train, 4]
    assert len(splits.train.labels) + len(splits.val.labels) == train
    assert len(caches(root)) == 1 and caches(root) != before


def test_caches_of_other_sizes_and_folders_are_kept(root, tmp_path, monkeypatch):
    other, cache = tmp_path / "other", tmp_path / "cache"
    for part in ("train", "test"):
        for i in range(5):
            for name in "ab":
                write_image(other / part / name / f"{i}.png", seed=i)
    for folder, size in ((root, 8), (root, 16), (other, 8)):
        ready(folder, image_size=size, cache_dir=str(cache))
    counts = decoded(monkeypatch)
    for folder, size in ((root, 8), (root, 16), (other, 8)):
        data = ready(folder, image_size=size, cache_dir=str(cache))
        assert data.image_shape == (3, size, size)
    assert counts == [] and len(caches(cache)) == 3
    assert not (root / ".sparsereg-cache").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign"])
def test_a_broken_cache_is_built_again(root, damage):
    good = ready(root).splits
    [path] = root.rglob("*.pt")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[content.index(good.train.images.numpy().tobytes()[:64])] ^= 1
    elif damage == "foreign":
        torch.save({"something": "else"}, path)
        content = path.read_bytes()
    elif damage == "cut":
        content = content[: len(content) // 2]
    else:
        content = b""
    path.write_bytes(content)
    again = ready(root).splits
    assert torch.equal(again.train.images, good.train.images)
    assert path.read_bytes() != content


def test_what_a_killed_run_left_is_removed(root):
    ready(root)
    [path] = root.rglob("*.pt")
    left = path.with_suffix(".tmp")
    left.write_bytes(path.read_bytes()[:100])
    path.unlink()
    ready(root)
    assert path.exists() and not left.exists()


def test_two_at_once_decode_once(root, monkeypatch):
    counts = decoded(monkeypatch)
    threads = [threading.Thread(target=ready, args=(root,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [4, 20]


def problem(root: Path | None, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        ready(root, **kwargs) if root else ImageFolder(**kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_root_or_a_missing_one(tmp_path):
    assert "data=image_folder needs data.root=" in problem(None)
    assert f"data.root={tmp_path / 'none'} is not a folder" in problem(tmp_path / "none")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_or_empty_part(root, part):
    (root / part).rename(root / "elsewhere")
    assert f"{root / part}" in problem(root)
    (root / part).mkdir()
    assert f"{root / part} has no class folders" in problem(root)


def test_a_class_without_images(root):
    (root / "train" / "emu").mkdir()
    assert f"{root / 'train' / 'emu'} has no images" in problem(root)


@pytest.mark.parametrize("part", ["val", "test"])
def test_classes_that_differ(root, part):
    for name in ("cat", "emu"):
        write_image(root / part / name / "0.png")
    if part == "test":
        (root / "test" / "dog").rename(root / "test" / "yak")
    message = problem(root)
    assert f"class folders of {part}/ differ" in message
    assert "emu" in message and "missing: dog" in message


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(root, content):
    file = root / "train" / "dog" / "3.png"
    file.write_bytes(file.read_bytes()[:500] if content is None else content)
    assert f"cannot read the image {file}" in problem(root)
    assert caches(root) == []


def test_a_cache_folder_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").touch()
    message = problem(root, cache_dir=str(tmp_path / "file"))
    assert str(tmp_path / "file") in message and "set data.cache_dir" in message


@pytest.mark.parametrize(
    "key, value",
    [("image_size", 0), ("image_size", 2.5), ("val_fraction", 0), ("val_fraction", 1.0)],
)
def test_bad_values_are_named_as_typed(root, key, value):
    assert problem(root, **{key: value}).startswith(f"data.{key}={value} must be ")
