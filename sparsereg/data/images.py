"""One image file to eight bits of red, green and blue, whatever it is stored as."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms.functional import center_crop, resize

from sparsereg.errors import UserError

DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of 16 bits
SIXTEEN = ("PNG", "PPM")  # formats that have at most 16 bits, whatever Pillow's mode
MAYBE_DEEP = (".png", ".tif", ".tiff", ".ppm")
MAYBE_MOVING = (".gif", ".png", ".webp", ".tif", ".tiff")


def read_image(file: Path, size: int, bits: int = 16) -> np.ndarray:
    """uint8 (size, size, 3): the shorter side scaled (bilinear, antialiased), the centre cut out.

    Turned as its EXIF data say, on white where it is transparent, the first frame of several.

    Args:
        file: the image.
        size: height and width.
        bits: that images of 16 bits make use of, see `bits_used`.

    Raises:
        UserError: names the file.
    """
    try:
        with Image.open(file) as image:
            image = resize(to_rgb(ImageOps.exif_transpose(image), bits), size)
            return np.asarray(center_crop(image, size))
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(f"cannot read the image {file} ({error}); replace or remove it") from error


def to_rgb(image: Image.Image, bits: int) -> Image.Image:
    if is_deep(image):
        scaled = np.asarray(image).astype(np.float64) * (255 / (2**bits - 1))
        return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode.startswith(("I", "F")):
        numbers = "floating-point numbers" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"{numbers} say nothing about what is black and what white: convert it")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Has it 16 bits? Pillow itself would clip them to eight."""
    return image.mode in DEEP or (image.mode == "I" and image.format in SIXTEEN)


def bits_used(files: Iterable[Path]) -> int:
    """How many of their 16 bits images make use of, all together: a camera may have twelve. Of
    files without such images 16."""
    highest = 0
    for file in files:
        if file.suffix.lower() not in MAYBE_DEEP:
            continue
        try:
            with Image.open(file) as image:
                if is_deep(image):
                    highest = max(highest, int(np.asarray(image).max()))
        except Exception:  # read_image will name it
            continue
    return max(8, highest.bit_length()) if highest else 16


def with_several_frames(files: Iterable[Path]) -> list[Path]:
    """Animations, and documents of several pages."""
    found = []
    for file in files:
        if file.suffix.lower() in MAYBE_MOVING:
            try:
                with Image.open(file) as image:
                    if getattr(image, "n_frames", 1) > 1:
                        found.append(file)
            except Exception:  # read_image will name it
                continue
    return found
