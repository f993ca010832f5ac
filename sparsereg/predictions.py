"""What a trained network says to images in files."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsereg.checkpoint import load, read_checkpoint
from sparsereg.data.augment import normalize, to_float
from sparsereg.data.image_folder import SUFFIXES, decode
from sparsereg.data.images import bits_used
from sparsereg.errors import UserError

BATCH = 256  # images that are decoded, and classified, at once


class Prediction(NamedTuple):
    """Of one image: its file, the most probable class, and the probability of each."""

    file: Path
    name: str
    probabilities: dict[str, float]


def predict(path: str | Path, images: str | Path) -> list[Prediction]:
    """Classify an image, or all images in a folder and below it, in the order of their names.

    They are read as those of a folder to train on (`data.images.read_image`): the shorter side
    scaled to the size of the images that the network was trained on, the centre cut out; grey if
    those were grey; normalised with their mean and standard deviation.

    Args:
        path: a checkpoint, or a file that `compact.py` or `sparsereg.save` has written.
        images: an image, or a folder.

    Raises:
        UserError: one of the two cannot be read, there is no image, or `path` names no classes.
    """
    data = read_checkpoint(path)["sparsereg"]["data"]
    (channels, *sides), classes = data["image_shape"], data["classes"]
    if not classes:
        raise UserError(f"ckpt_path={path} has no names of classes")
    if channels not in (1, 3) or sides[0] != sides[1]:
        raise UserError(
            f"ckpt_path={path} takes images of {data['image_shape']} (C, H, W); predict reads "
            "square ones, in colour or grey"
        )
    files, net = find_files(Path(images)), load(path)
    bits, predictions = bits_used(files), []
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        pixels = decode(part, sides[0], bits)  # (N, 3, H, W)
        rows = probabilities(net, pixels if channels == 3 else grey(pixels), data)
        for file, row in zip(part, rows.tolist(), strict=True):
            found = dict(zip(classes, row, strict=True))
            predictions.append(Prediction(file, max(found, key=found.get), found))
    return predictions


def find_files(images: Path) -> list[Path]:
    """The image, or those in the folder and below it, sorted."""
    if not images.exists():
        raise UserError(f"images={images} does not exist")
    if not images.is_dir():
        return [images]
    files = [path for path in sorted(images.rglob("*")) if path.suffix.lower() in SUFFIXES]
    files = [path for path in files if path.is_file() and not is_hidden(path, images)]
    if not files:
        raise UserError(f"images={images} has no images ({', '.join(sorted(SUFFIXES))})")
    return files


def is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def grey(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 1, H, W): luma, ITU-R 601."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


@torch.no_grad()
def probabilities(net: nn.Module, images: Tensor, data: dict) -> Tensor:
    """Of uint8 (N, C, H, W) images, (N, classes)."""
    mean, std = torch.tensor(data["mean"]), torch.tensor(data["std"])
    return net(normalize(to_float(images), mean, std)).softmax(dim=1)
