"""Batched augmentation against torchvision's, image by image."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from sparsereg.data.augment import (
    augment,
    cutout,
    normalize,
    padded_crop,
    random_boxes,
    resized_crop,
    to_float,
)

SHAPES = [(32, 32), (16, 16), (24, 40)]


def random_images(n: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8)


def edge_boxes(height: int, width: int) -> torch.Tensor:
    """The full image, single pixels, and lines of one pixel along every side."""
    last_row, last_column = height - 1, width - 1
    return torch.tensor(
        [
            [0, 0, height, width],
            [0, 0, 1, 1],
            [last_row, last_column, 1, 1],
            [0, 0, 1, width],
            [last_row, 0, 1, width],
            [0, 0, height, 1],
            [0, last_column, height, 1],
            [1, 1, height - 1, width - 1],
            [0, 0, height - 1, width - 1],
        ]
    )


def torchvision_crop(image: torch.Tensor, box: list[int], through_pil: bool) -> torch.Tensor:
    size = list(image.shape[-2:])
    source = TF.to_pil_image(image) if through_pil else image
    out = TF.resized_crop(source, *box, size, InterpolationMode.BILINEAR, antialias=True)
    return TF.to_tensor(out) if through_pil else out / 255


@pytest.mark.parametrize("through_pil", [True, False], ids=["PIL", "uint8"])
@pytest.mark.parametrize("height, width", SHAPES)
def test_resized_crop_agrees_with_torchvision(height, width, through_pil):
    torch.manual_seed(0)
    wide = random_boxes(150, height, width, (0.1, 1.0), (0.5, 2.0))
    mild = random_boxes(50, height, width, (0.8, 1.0), (0.9, 1.1))
    boxes = torch.cat([wide, mild, edge_boxes(height, width)])
    images = random_images(len(boxes), height, width)
    flipped = torch.arange(len(boxes)) % 2 == 1
    ours = resized_crop(images, boxes, flipped)
    for i, box in enumerate(boxes.tolist()):
        theirs = torchvision_crop(images[i], box, through_pil)
        theirs = TF.hflip(theirs) if flipped[i] else theirs
        assert (ours[i] - theirs).abs().max() <= 1 / 255 + 1e-6, (box, flipped[i])


def test_the_full_box_changes_nothing():
    images = random_images(4, 32, 32)
    boxes = torch.tensor([[0, 0, 32, 32]]).expand(4, 4)
    still = torch.zeros(4, dtype=torch.bool)
    torch.testing.assert_close(resized_crop(images, boxes, still), images / 255)
    torch.testing.assert_close(resized_crop(images, boxes, ~still), images.flip(-1) / 255)


@pytest.mark.parametrize(
    "height, width, scale, ratio",
    [
        (32, 32, (0.8, 1.0), (0.9, 1.1)),
        (32, 32, (0.1, 1.0), (0.75, 1.33)),
        (24, 40, (0.3, 0.9), (0.5, 2.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale, ratio):
    torch.manual_seed(1)
    count = 6000
    image = torch.empty(3, height, width)
    params = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)]
    theirs = torch.tensor(params).double()
    ours = random_boxes(20 * count, height, width, scale, ratio).double()
    # top, left, height, width; bottom and right margins; area
    theirs, ours = (
        torch.cat([b, b[:, :2] + b[:, 2:], b[:, 2:3] * b[:, 3:]], 1) for b in (theirs, ours)
    )
    error = theirs.std(0) / count**0.5 * 1.03  # of the difference: ours has 20 times the samples
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    for column in range(theirs.shape[1]):  # share of boxes below each quartile, 5 standard errors
        for quartile in theirs[:, column].quantile(torch.tensor([0.25, 0.5, 0.75]).double()):
            p = (theirs[:, column] <= quartile).double().mean()
            q = (ours[:, column] <= quartile).double().mean()
            assert (p - q).abs() < 5 * 1.03 * (q * (1 - q) / count) ** 0.5 + 1e-9


@pytest.mark.parametrize("height, width", [*SHAPES, (3, 3)])
def test_boxes_lie_inside_the_image(height, width):
    boxes = random_boxes(20_000, height, width, (0.1, 1.0), (0.3, 3.0))
    top, left, h, w = boxes.unbind(1)
    assert boxes.dtype == torch.int64
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    assert (top + h == height).any() and (top == 0).any()


@pytest.mark.parametrize("ratio", [(3.0, 4.0), (0.2, 0.3)])
def test_the_fallback_is_torchvisions_central_crop(ratio):
    scale = (0.95, 1.0)  # no such box of that ratio fits a square
    expected = RandomResizedCrop.get_params(torch.empty(3, 32, 32), scale, ratio)
    assert random_boxes(5, 32, 32, scale, ratio).tolist() == [list(expected)] * 5


def test_augmentation_follows_the_default_generator():
    images = random_images(64, 32, 32)
    torch.manual_seed(3)
    first, second = augment(images), augment(images)
    torch.manual_seed(3)
    torch.testing.assert_close(augment(images), first, rtol=0, atol=0)
    assert (first != second).any()
    assert first.dtype == torch.float32 and first.min() >= 0 and first.max() <= 1 + 1e-6


@pytest.mark.parametrize("crop_scale", [None, (1.0, 1.0)])
def test_half_of_the_images_are_flipped(crop_scale):
    torch.manual_seed(0)
    images = random_images(1000, 8, 8)
    out = augment(images, crop_scale=crop_scale, crop_ratio=(1.0, 1.0))
    mirrored = torch.isclose(out, images.flip(-1) / 255, atol=1e-5).flatten(1).all(1)
    same = torch.isclose(out, images / 255, atol=1e-5).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 420 < mirrored.sum() < 580  # five standard deviations


def test_without_flip_and_crop_nothing_changes():
    images = random_images(10, 32, 32)
    torch.testing.assert_close(augment(images, flip=False, crop_scale=None), to_float(images))


def test_normalize_agrees_with_torchvision():
    images = torch.rand(5, 3, 8, 8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]
    out = normalize(images, torch.tensor(mean), torch.tensor(std))
    torch.testing.assert_close(out, TF.normalize(images, mean, std))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("height, width", SHAPES)
def test_padded_crop_is_torchvisions(height, width):
    n, padding = 100, 4
    images = random_images(n, height, width)
    top, left = torch.randint(-padding, padding + 1, (2, n))
    ours = padded_crop(images, top, left)
    for i in range(n):
        padded = TF.pad(images[i], [padding] * 4, padding_mode="reflect")
        y, x = int(top[i]) + padding, int(left[i]) + padding
        assert torch.equal(ours[i], TF.crop(padded, y, x, height, width))


def test_every_place_of_a_padded_crop_is_as_likely():
    torch.manual_seed(0)
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(20_000, 3, 16, 16)
    out = augment(image, flip=False, crop_scale=None, crop_padding=2)
    middle = (out[:, 0, 8, 8] * 255).round().long()  # tells where the crop began
    places = {8 * 16 + 8 + 16 * y + x for y in range(-2, 3) for x in range(-2, 3)}
    counts = middle.bincount(minlength=256)
    assert set(counts.nonzero().flatten().tolist()) == places
    expected, sd = 20_000 / 25, (20_000 * 1 / 25 * 24 / 25) ** 0.5
    assert (counts[sorted(places)] - expected).abs().max() < 5 * sd


def test_cutout_covers_a_square_around_a_uniform_centre():
    torch.manual_seed(0)
    images = cutout(torch.ones(4000, 3, 16, 12), 4)
    hidden = images == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1]) and torch.equal(hidden[:, 0], hidden[:, 2])
    rows, columns = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
    assert torch.equal(hidden[:, 0].sum((1, 2)), rows * columns)  # a rectangle
    assert rows.max() == 4 == columns.max() and min(rows.min(), columns.min()) == 2
    share = hidden[:, 0].float().mean(0)  # over the images
    assert share[8, 6].item() == pytest.approx(16 / (16 * 12), abs=0.02)
