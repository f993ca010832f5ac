"""A folder of images, one sub-folder per class, decoded once and cached."""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsereg.data.folder_cache import load_or_build
from sparsereg.data.images import bits_used, read_image, with_several_frames
from sparsereg.data.pipeline import SPLIT_SEED, ImageData, LabelledImages, Splits, require
from sparsereg.errors import UserError, printable

CACHE_VERSION = 2  # raise it when the decoding or the contents of the file change
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}


class ImageFolder(ImageData):
    """Images in ``root/train/CLASS/*``, ``root/test/CLASS/*`` and perhaps ``root/val/CLASS/*``.

    They become (3, image_size, image_size), see `read_image`.

    Args:
        root: the folder.
        image_size: height and width in pixels.
        val_fraction: of the training images of each class, for validation; unused where there is a
            ``val/``.
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
        every = [file for images in parts.values() for files in images.values() for file in files]
        check_memory(len(every), self.image_size)
        warn_of_frames(every)
        bits, data = bits_used(every), {}
        for part, images in parts.items():
            files = [file for name in classes for file in images[name]]
            labels = [label for label, name in enumerate(classes) for _ in images[name]]
            place = printable(self.root / part)
            print(f"decoding {len(files)} images of {place}, once", flush=True)
            data[part] = LabelledImages(decode(files, self.image_size, bits), torch.tensor(labels))
        if "val" not in data:
            data["train"], data["val"] = split_classes(data["train"], self.val_fraction)
            warn_of_classes(data["val"].labels, classes)
        mean, std = statistics(data["train"].images)
        return Splits(**data, classes=classes, mean=mean, std=std)


def check_memory(images: int, size: int) -> None:
    """Raise UserError for images that this machine cannot hold."""
    needed = images * 3 * size**2
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.8 * memory:
        raise UserError(
            f"data.image_size={size}: {images} images take {needed / 1e9:,.0f} GB, and this "
            f"machine has {memory / 1e9:,.0f} GB"
        )


def warn_of_frames(files: list[Path]) -> None:
    if moving := with_several_frames(files):
        first = printable(moving[0])
        say(f"of {len(moving)} files with several frames the first is used ({first}, …)")


def warn_of_classes(labels: Tensor, classes: list[str]) -> None:
    """A validation set that was split off may lack classes with few images."""
    present = {*labels.tolist()}
    if absent := [name for label, name in enumerate(classes) if label not in present]:
        say(f"no validation image of {printable(', '.join(absent))}: there are too few to share")


def say(warning: str) -> None:
    print(f"warning: {warning}", file=sys.stderr, flush=True)


def split_classes(data: LabelledImages, fraction: float) -> list[LabelledImages]:
    """Training and validation part, each class by itself: a random share of its images, of which at
    least one stays for training. The same on every call."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    held_out = torch.zeros(len(data.labels), dtype=torch.bool)
    counts = data.labels.bincount()
    for label, count in enumerate(counts.tolist()):
        share = min(round(count * fraction), count - 1)
        if count == counts.max() and not held_out.any():  # in all, one at least
            share = max(share, min(1, count - 1))
        order = torch.randperm(count, generator=generator)
        held_out[torch.nonzero(data.labels == label).flatten()[order[:share]]] = True
    if not held_out.any():
        raise UserError("data.root has one training image a class: none is left for validation")
    return [LabelledImages(data.images[part], data.labels[part]) for part in (~held_out, held_out)]


def find_images(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Part ("train", "test", perhaps "val") -> class -> files, the latter two sorted by name.

    Raises:
        UserError: if a part or class is missing, empty or unreadable, or the parts' classes differ.
    """
    try:
        if not root.is_dir():
            raise UserError(f"data.root={root} is not a folder")
        parts = {}
        for part in ("train", "val", "test"):
            if part != "val" or (root / part).exists():
                parts[part] = _classes(root / part)
                _check_same_classes(part, set(parts["train"]), set(parts[part]))
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise UserError(f"data.root={root} cannot be read ({reason})") from error
    if len(parts["train"]) == 1:
        [name] = parts["train"]
        raise UserError(f"data.root={root} has one class alone, {name}: nothing to tell apart")
    return parts


def folder_state(root: Path, parts: dict[str, dict[str, list[Path]]]) -> str:
    """Digest of the images' names, sizes and times: changes whenever an image does."""
    files = [file for part in parts.values() for images in part.values() for file in images]
    stats = [(file.relative_to(root).as_posix(), file.stat()) for file in files]
    state = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return _digest(repr(sorted(state)))


def decode(files: list[Path], size: int, bits: int = 16) -> Tensor:
    """Images of any size and mode -> uint8 (N, 3, size, size), see `read_image`. UserError names a
    bad file."""
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)

    def decode_one(i: int) -> None:
        images[i] = read_image(files[i], size, bits).transpose(2, 0, 1)

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
    shown = [path for path in sorted(folder.iterdir()) if _shown(path)]
    for path in shown:
        _check_leads_somewhere(path)
    classes = {path.name: _images(path) for path in shown if path.is_dir()}
    if not classes:
        raise UserError(f"{folder} has no class folders; expected {folder}/CLASS/*.jpg")
    return classes


def _images(folder: Path) -> list[Path]:
    shown = [path for path in folder.iterdir() if _shown(path)]
    files = sorted(path for path in shown if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}); add or remove it")
    for file in files:
        _check_leads_somewhere(file)
        if not file.is_file():
            raise UserError(f"{file} is no regular file: remove it")
    unknown = {path.suffix for path in shown if path.suffix.lower() not in SUFFIXES}
    if len(shown) > 2 * len(files):
        raise UserError(
            f"{folder} has {len(shown)} files, of which {len(files)} are read: remove the others "
            f"({', '.join(sorted(unknown)[:5])}), or convert them"
        )
    return files


def _check_leads_somewhere(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link that leads nowhere: remove it")


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
