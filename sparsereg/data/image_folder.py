"""A folder of images, one sub-folder per class, decoded once and cached."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize

from sparsereg.data.folder_cache import load_or_build
from sparsereg.data.pipeline import ImageData, LabelledImages, Splits, require, split
from sparsereg.errors import UserError

CACHE_VERSION = 1  # raise it when the decoding or the contents of the file change
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


class ImageFolder(ImageData):
    """Images in ``root/train/CLASS/*``, ``root/test/CLASS/*`` and perhaps ``root/val/CLASS/*``.

    They are resized (shorter side, bilinear with antialias) and centre-cropped to
    (3, image_size, image_size).

    Args:
        root: the folder.
        image_size: height and width in pixels.
        val_fraction: of the training images, for validation; unused where there is a ``val/``.
        cache_dir: folder for the decoded images. None: ``root/.sparsereg-cache``.
        pipeline: the arguments of `ImageData`.
    """

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 32,
        val_fraction: float = 0.1,
        cache_dir: str | None = None,
        **pipeline,
    ) -> None:
        super().__init__(**pipeline)
        if not root:
            raise UserError("data=image_folder needs data.root=FOLDER (with train/ and test/)")
        whole = type(image_size) is int and image_size >= 1
        require(whole, "image_size", image_size, "a whole number of at least 1")
        fraction = isinstance(val_fraction, float) and 0 < val_fraction < 1
        require(fraction, "val_fraction", val_fraction, "between 0 and 1")
        self.root = Path(root).expanduser().resolve()
        self.image_size, self.val_fraction = image_size, val_fraction
        if cache_dir:  # several data folders may share it
            self.cache_dir = Path(cache_dir).expanduser() / _digest(str(self.root))
        else:
            self.cache_dir = self.root / ".sparsereg-cache"

    def read_splits(self) -> Splits:
        parts = find_images(self.root)
        settings = f"{self.image_size}-{self.val_fraction}-v{CACHE_VERSION}"
        state = folder_state(self.root, parts)
        return load_or_build(self.cache_dir, state, settings, lambda: self._decode(parts))

    def _decode(self, parts: dict[str, dict[str, list[Path]]]) -> Splits:
        classes = list(parts["train"])
        data = {}
        for part, images in parts.items():
            files = [file for name in classes for file in images[name]]
            labels = [label for label, name in enumerate(classes) for _ in images[name]]
            print(f"decoding {len(files)} images of {self.root / part}, once", flush=True)
            data[part] = LabelledImages(decode(files, self.image_size), torch.tensor(labels))
        if "val" not in data:
            count = len(data["train"].labels)
            held_out = max(1, round(count * self.val_fraction))
            data["train"], data["val"] = split(data["train"], count - held_out, held_out)
        mean, std = statistics(data["train"].images)
        return Splits(**data, classes=classes, mean=mean, std=std)


def find_images(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Part ("train", "test", perhaps "val") -> class -> files, the latter two sorted by name.

    Raises:
        UserError: if a part or class is missing or empty, or the parts' classes differ.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder")
    parts = {}
    for part in ("train", "val", "test"):
        if part != "val" or (root / part).exists():
            parts[part] = _classes(root / part)
            _check_same_classes(part, set(parts["train"]), set(parts[part]))
    return parts


def folder_state(root: Path, parts: dict[str, dict[str, list[Path]]]) -> str:
    """Digest of the images' names, sizes and times: changes whenever an image does."""
    files = [file for part in parts.values() for images in part.values() for file in images]
    stats = [(file.relative_to(root).as_posix(), file.stat()) for file in files]
    state = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return _digest(repr(sorted(state)))


def decode(files: list[Path], size: int) -> Tensor:
    """Images of any size and mode -> uint8 (N, 3, size, size). UserError names a bad file."""
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)

    def decode_one(i: int) -> None:
        images[i] = _decode_file(files[i], size).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode_one, range(len(files))):
            pass
    return torch.from_numpy(images)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 (N, C, H, W) scaled to [0, 1], exact."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append((share * levels).sum().item())
        variance = (share * (levels - mean[-1]) ** 2).sum().item()
        std.append(max(variance**0.5, 1 / 255))  # images of one colour: no division by zero
    return tuple(mean), tuple(std)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Class -> its image files, both sorted by name."""
    if not folder.is_dir():
        raise UserError(f"data.root has no folder {folder}; it needs train/CLASS/ and test/CLASS/")
    classes = {f.name: _images(f) for f in sorted(folder.iterdir()) if f.is_dir() and _shown(f)}
    if not classes:
        raise UserError(f"{folder} has no class folders; expected {folder}/CLASS/*.jpg")
    return classes


def _images(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and _shown(f))
    if not files:
        raise UserError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}); add or remove it")
    return files


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _check_same_classes(part: str, expected: set[str], found: set[str]) -> None:
    if expected != found:
        missing = ", ".join(sorted(expected - found)) or "none"
        unknown = ", ".join(sorted(found - expected)) or "none"
        raise UserError(
            f"the class folders of {part}/ differ from those of train/: "
            f"missing: {missing}; not in train/: {unknown}"
        )


def _decode_file(file: Path, size: int) -> np.ndarray:
    """uint8 (size, size, 3)."""
    try:
        with Image.open(file) as image:
            image = resize(image.convert("RGB"), size)  # shorter side; bilinear, antialiased
            return np.asarray(center_crop(image, size))
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(f"cannot read the image {file} ({error}); replace or remove it") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
