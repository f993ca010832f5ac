"""Random resized crops and flips of a whole batch at once, each image with its own parameters.

A crop box never exceeds its image, so stretching it to the full size is plain bilinear
interpolation, and interpolation is linear in each direction: ``out = R_y @ image @ R_x^T`` with
one (out, in) matrix per image and direction. A flip reverses the rows of ``R_x``. All random
numbers come from the default generator of the images' device; nothing waits for the device.
"""

import math

import torch
from torch import Tensor

TRIES = 10  # as torchvision's RandomResizedCrop


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [0, 1], any shape."""
    return images.to(torch.float32).div_(255)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(images - mean) / std`` for float (N, C, H, W) images and (C,) statistics, on one device.

    The result is in channels_last memory format, which halves a convolution's time on a CPU; it
    comes last, because there a value for each channel takes twice the time.
    """
    normal = (images - mean.view(1, -1, 1, 1)).div_(std.view(1, -1, 1, 1))
    # not `contiguous`, which leaves grey images alone, and so what a convolution makes of them
    return normal.to(memory_format=torch.channels_last)


def augment(
    images: Tensor,
    flip: bool = True,
    crop_scale: tuple[float, float] | None = (0.8, 1.0),
    crop_ratio: tuple[float, float] = (0.9, 1.1),
    crop_padding: int = 0,
) -> Tensor:
    """Random horizontal flips, and crops: stretched to full size, or out of a padded image.

    Args:
        images: uint8 (N, C, H, W).
        flip: mirror each image with probability one half.
        crop_scale: lowest and highest share of the image's area in a crop; None: no crops.
        crop_ratio: lowest and highest width / height of a crop.
        crop_padding: where there are no other crops, crop each image out of itself, padded by so
            many of its mirrored pixels on each side.

    Returns:
        float32 (N, C, H, W) in [0, 1].
    """
    n, _, height, width = images.shape
    flipped = torch.rand(n, device=images.device) < (0.5 if flip else 0.0)  # (N,)
    if crop_scale is not None:
        boxes = random_boxes(n, height, width, crop_scale, crop_ratio, images.device)
        return resized_crop(images, boxes, flipped)
    if crop_padding:
        drawn = torch.randint(2 * crop_padding + 1, (2, n), device=images.device)
        images = padded_crop(images, *(drawn - crop_padding))
    return to_float(torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images))


def random_boxes(
    n: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Crop boxes distributed as those of ``torchvision.transforms.RandomResizedCrop``.

    The area is uniform in ``scale``, width / height log-uniform in ``ratio``. Ten candidates are
    drawn for each box; the first one that fits is taken, a central crop if none does.

    Returns:
        int64 (n, 4): top, left, height, width, in pixels, all inside a height x width image.
    """
    area = height * width * torch.empty(n, TRIES, device=device).uniform_(*scale)
    log_ratio = torch.empty(n, TRIES, device=device).uniform_(*map(math.log, ratio))
    w = (area * log_ratio.exp()).sqrt().round()  # (n, TRIES)
    h = (area / log_ratio.exp()).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.byte().argmax(1, keepdim=True)  # (n, 1), 0 where none fits
    found = fits.gather(1, first).squeeze(1)  # (n,)
    central_h, central_w = _central_box(height, width, ratio)
    h = torch.where(found, h.gather(1, first).squeeze(1), central_h)
    w = torch.where(found, w.gather(1, first).squeeze(1), central_w)
    top = _offset(height - h, found)
    left = _offset(width - w, found)
    return torch.stack([top, left, h, w], dim=1).long()


def resized_crop(images: Tensor, boxes: Tensor, flipped: Tensor) -> Tensor:
    """Cuts one box out of each image, stretches it to the image's size, mirrors where asked.

    Agrees within 1/255 with torchvision's ``resized_crop(..., BILINEAR, antialias=True)``.

    Args:
        images: uint8 (N, C, H, W).
        boxes: (N, 4) top, left, height, width in pixels, inside the image.
        flipped: bool (N,), True: mirror left and right.

    Returns:
        float32 (N, C, H, W) in [0, 1].
    """
    top, left, height, width = boxes.unbind(1)
    rows = _interpolation(images.shape[2], top, height)  # (N, H, H)
    columns = _interpolation(images.shape[3], left, width)  # (N, W, W)
    columns = torch.where(flipped.view(-1, 1, 1), columns.flip(1), columns)
    stretched = to_float(images).flatten(1, 2) @ columns.mT  # (N, C * H, W)
    return rows.unsqueeze(1) @ stretched.view(images.shape)


def padded_crop(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Crops of the images' own size that begin at (`top`, `left`) of each image, (N,) each; pixels
    outside are those mirrored at the edge, as with torchvision's `padding_mode="reflect"`."""
    row = _mirrored(images.shape[2], top)  # (N, H)
    column = _mirrored(images.shape[3], left)  # (N, W)
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    moved = images.permute(0, 2, 3, 1)[image, row.unsqueeze(2), column.unsqueeze(1)]  # (N, H, W, C)
    return moved.permute(0, 3, 1, 2)


def cutout(images: Tensor, size: int) -> Tensor:
    """Sets a square of each image to 0, the mean of normalised images, in place.

    Cutout of DeVries and Taylor 2017 (arXiv 1708.04552): the centre is uniform in the image, so
    that the square may reach over an edge.

    Args:
        images: float (N, C, H, W), normalised.
        size: of the square, in pixels.
    """

    def covered(pixels: int) -> Tensor:
        start = torch.randint(pixels, (len(images), 1), device=images.device) - size // 2
        offset = torch.arange(pixels, device=images.device) - start  # (N, pixels)
        return (offset >= 0) & (offset < size)

    rows, columns = covered(images.shape[2]), covered(images.shape[3])
    return images.masked_fill_((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0)


def _mirrored(size: int, start: Tensor) -> Tensor:
    """Which pixels of a row are those from `start` on, (N, size)."""
    place = (torch.arange(size, device=start.device) + start.unsqueeze(1)).abs()
    return torch.minimum(place, 2 * (size - 1) - place)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest central box with an allowed ratio."""
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    return height, width


def _offset(room: Tensor, found: Tensor) -> Tensor:
    """Uniform integers in 0..room where a box was found, else the middle; (n,) float."""
    uniform = (torch.rand_like(room) * (room + 1)).floor()
    uniform = torch.minimum(uniform, room)  # float rounding can reach room + 1
    return torch.where(found, uniform, (room / 2).floor())


def _interpolation(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Matrices (N, size, size) that stretch pixels start .. start + length - 1 to ``size``."""
    pixels = torch.arange(size, device=start.device, dtype=torch.float32)
    source = (pixels + 0.5) * (length / size).unsqueeze(1) - 0.5  # (N, size), inside the box
    source = torch.minimum(source.clamp_(min=0), (length - 1).unsqueeze(1))  # edges replicate
    source = source + start.unsqueeze(1)
    return (1 - (pixels - source.unsqueeze(2)).abs_()).relu_()
