"""predict.py and `sparsereg.predict`: classes of images in files."""

import csv
from pathlib import Path

import pytest
import torch
from conftest import assert_one_line
from PIL import Image
from torch import nn

import sparsereg
from sparsereg.data import Digits
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import L0Gate


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.setup()
    return data


@pytest.fixture
def folder(digits, tmp_path) -> Path:
    """Three of the test images as files, one in a folder of its own, and what is no image."""
    for name, image in zip(("a.png", "b/c.PNG", "d.bmp"), digits.splits.test.images, strict=False):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / ".hidden.png").write_text("no image")
    return tmp_path / "images"


def test_the_table(command, lenet5, digits, folder, tmp_path):
    """The probabilities are those of the same images from the data set itself."""
    out = tmp_path / "out.csv"
    result = command("predict.py", f"ckpt_path={lenet5}", f"images={folder}", f"csv={out}")
    assert result.code == 0, result.err
    header, *rows = list(csv.reader(out.read_text().splitlines()))
    assert header == ["file", "class", "probability", *map(str, range(10))]
    assert [row[0] for row in rows] == [str(folder / n) for n in ("a.png", "b/c.PNG", "d.bmp")]
    batch = digits.splits.test.images[:3], digits.splits.test.labels[:3]
    images, _ = digits.on_after_batch_transfer(batch)
    with torch.no_grad():
        expected = sparsereg.load(lenet5)(images).softmax(1)
    for row, shares in zip(rows, expected, strict=True):
        assert [float(cell) for cell in row[3:]] == pytest.approx(shares.tolist(), abs=2e-6)
        assert row[1] == str(int(shares.argmax())) and float(row[2]) == max(map(float, row[3:]))
    assert "b/c.PNG" in result.out and "3 image(s)" in result.out


def first_pixels(channels: int) -> nn.Module:
    """Its logits are the mean of each of two halves of the image, as it gets it."""
    pool = nn.AdaptiveAvgPool2d((1, 2))
    net = nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), pool, nn.Flatten(), nn.Linear(2, 2))
    net[0].weight.data.fill_(1 / channels)
    net[3].weight.data.copy_(torch.eye(2))
    net[3].bias.data.zero_()
    return net


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_are_read_as_the_network_wants_them(tmp_path, channels):
    """The centre, grey where the data were, (x / 255 - mean) / std."""
    net, path = first_pixels(channels), tmp_path / "net.pt"
    statistics = {"mean": [0.5] * channels, "std": [0.25] * channels}
    sparsereg.save(net, path, (channels, 8, 8), ["left", "right"], **statistics)
    image = Image.new("RGB", (80, 40), (255, 0, 0))  # what is left and right of its centre
    image.paste((30, 30, 30), (20, 0, 40, 40))
    image.paste((200, 200, 200), (40, 0, 60, 40))
    image.save(tmp_path / "wide.png")
    [found] = sparsereg.predict(path, tmp_path / "wide.png")
    logits = torch.tensor([(value / 255 - 0.5) / 0.25 for value in (30, 200)])
    # the antialiased edge between the two halves is the same for both
    left, right = found.probabilities["left"], found.probabilities["right"]
    assert found.name == "right" and left + right == pytest.approx(1)
    assert right == pytest.approx(logits.softmax(0)[1].item(), abs=0.03)


MISTAKES = {
    "no checkpoint": (("images={folder}",), ["ckpt_path=… is needed"]),
    "no images": (("ckpt_path={ckpt}",), ["images=… is needed"]),
    "no such file": (("ckpt_path=none.pt", "images={folder}"), ["none.pt", "does not exist"]),
    "no such folder": (("ckpt_path={ckpt}", "images=none"), ["images=none does not exist"]),
    "empty": (("ckpt_path={ckpt}", "images={empty}"), ["empty has no images", ".jpg"]),
    "unreadable": (("ckpt_path={ckpt}", "images={folder}/notes.txt"), ["cannot read", "notes.txt"]),
    "no classes": (("ckpt_path={nameless}", "images={folder}"), ["no names of classes"]),
    "no such setting": (("ckpt_path={ckpt}", "image=x"), ["did you mean 'images'?"]),
    "no folder": (("ckpt_path={ckpt}", "images={folder}", "csv=no/x.csv"), ["no folder no"]),
    "cannot be written": (
        ("ckpt_path={ckpt}", "images={folder}", "csv={folder}"),
        ["cannot save", "Is a directory"],
    ),
}


@pytest.mark.parametrize("arguments, words", MISTAKES.values(), ids=MISTAKES)
def test_mistakes(command, folder, tmp_path, arguments, words):
    names = {name: tmp_path / name for name in ("ckpt", "nameless", "empty")} | {"folder": folder}
    names["empty"].mkdir()
    sparsereg.save(first_pixels(3), names["ckpt"], (3, 8, 8), ["a", "b"], [0.0] * 3, [1.0] * 3)
    content = torch.load(names["ckpt"], weights_only=True)
    content["sparsereg"]["data"]["classes"] = []
    torch.save(content, names["nameless"])
    result = command("predict.py", *(argument.format(**names) for argument in arguments))
    assert_one_line(result, *words)


def test_images_that_are_not_square_are_refused(tmp_path):
    sparsereg.save(
        first_pixels(3), tmp_path / "net.pt", (3, 8, 4), ["a", "b"], [0.0] * 3, [1.0] * 3
    )
    with pytest.raises(UserError, match=r"takes images of \[3, 8, 4\]"):
        sparsereg.predict(tmp_path / "net.pt", tmp_path)


def test_what_is_saved_is_cut_and_comes_back(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), L0Gate(8), nn.Flatten(), nn.Linear(288, 2))
    net[2].qz_loga.data[:6] = -9
    net.eval()
    sparsereg.save(net, tmp_path / "net.pt", (3, 8, 8), ["a", "b"], [0.5] * 3, [0.25] * 3)
    small, images = sparsereg.load(tmp_path / "net.pt"), torch.randn(4, 3, 8, 8)
    assert small.get_submodule("0").out_channels == 2
    assert torch.allclose(small(images), net(images), atol=1e-5)
    assert sparsereg.measure(small, (3, 8, 8)) == sparsereg.measure(net, (3, 8, 8))
