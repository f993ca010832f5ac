"""By how much is one network less accurate than another, on the same images?"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sparsereg.data.pipeline import ImageData

ONE_SIDED = 1.645  # standard errors above which a normal variable lies in 5 % of cases


class Drop(NamedTuple):
    """In points of accuracy: the difference, and what it is below with 95 % confidence."""

    drop: float
    bound: float


def paired_drop(before: Tensor, after: Tensor) -> Drop:
    """Of `after` below `before`, which say of each image whether it was classified right, (N,).

    With d = 1, 0 or -1 for each image, mean(d) + 1.645 · sd(d) / √N: images that both networks get
    right, or wrong, do not count, so it is narrower than what two accuracies alone would say. An
    approximation for many images; of a few hundred, a few decide.
    """
    difference = before.double() - after.double()
    error = difference.std(correction=0).item() / math.sqrt(len(difference))
    drop = difference.mean().item()
    return Drop(100 * drop, 100 * (drop + ONE_SIDED * error))


def batches(data: ImageData, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A split's normalised images and labels, without augmentation."""
    part = getattr(data.splits, split)
    sizes = (tensor.split(data.eval_batch_size) for tensor in part)
    for images, labels in zip(*sizes, strict=True):
        yield data.on_after_batch_transfer((images, labels))


@torch.no_grad()
def right(run: Callable, data: ImageData, split: str, flip_tta: bool) -> Tensor:
    """Which images of a split `run`, images to logits, classifies right, (N,)."""
    found = []
    for images, labels in batches(data, split):
        logits = run(images)
        if flip_tta:
            logits = (logits + run(images.flip(-1))) / 2
        found.append(logits.argmax(dim=1) == labels)
    return torch.cat(found)
