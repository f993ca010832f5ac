"""One in-memory pipeline under every data set.

The images stay one uint8 tensor, on the GPU where it fits. A batch is one indexing operation,
and it is augmented and normalised on its device. A data set only has to implement
`ImageData.read_splits`.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sparsereg.data.augment import augment, cutout, normalize, to_float
from sparsereg.data.batch_indices import BatchIndices
from sparsereg.errors import UserError

SPLIT_SEED = 1712_01312  # of the training/validation split: the same for every run's seed


class LabelledImages(NamedTuple):
    """One split of a data set."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)


@dataclass
class Splits:
    """A data set in memory. `mean` and `std` are per channel, of images scaled to [0, 1]."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def require(ok: bool, key: str, value: Any, wanted: str) -> None:
    """Raises UserError "data.KEY=VALUE must be WANTED" unless ok."""
    if not ok:
        raise UserError(f"data.{key}={value} must be {wanted}")


def split(data: LabelledImages, *sizes: int) -> list[LabelledImages]:
    """Random parts of the given sizes, the same on every call whatever the run's seed is."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(data.labels), generator=generator)
    return [LabelledImages(data.images[i], data.labels[i]) for i in order.split(sizes)]


class ImageData(pl.LightningDataModule):
    """Loaders of (float32 (N, C, H, W) normalised images, int64 (N,) labels).

    After `setup`: `splits`, `classes`, `image_shape` (C, H, W) and `record()`.

    Args:
        batch_size: training images per step and device.
        eval_batch_size: the same for validation and test.
        seed: of the order of the training images.
        flip: mirror training images with probability one half.
        crop_scale: lowest and highest share of the area in a random crop; None: no crops.
        crop_ratio: lowest and highest width / height of a random crop.
        crop_padding: where crop_scale is None, crop out of the image padded by so many pixels.
        cutout: size of a square that is cut out of each training image, in pixels; 0: none.

    Raises:
        UserError: for a value out of range; in `setup` for a batch larger than the data set.
    """

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        seed: int = 42,
        flip: bool = True,
        crop_scale: Sequence[float] | None = (0.8, 1.0),
        crop_ratio: Sequence[float] = (0.9, 1.1),
        crop_padding: int = 0,
        cutout: int = 0,
    ) -> None:
        super().__init__()
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            require(_is_count(value), key, value, "a whole number of at least 1")
        if crop_scale is not None:
            wanted = "null or two numbers [low, high] with 0 < low <= high <= 1"
            require(_is_range(crop_scale, 1), "crop_scale", crop_scale, wanted)
            crop_scale = tuple(crop_scale)
        wanted = "two numbers [low, high] with 0 < low <= high"
        require(_is_range(crop_ratio, float("inf")), "crop_ratio", crop_ratio, wanted)
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.flip, self.crop_scale, self.crop_ratio = flip, crop_scale, tuple(crop_ratio)
        for key, value in (("crop_padding", crop_padding), ("cutout", cutout)):
            require(value == 0 or _is_count(value), key, value, "a whole number of at least 0")
        alone = crop_scale is None or not crop_padding
        require(alone, "crop_padding", crop_padding, "0, or set data.crop_scale=null")
        self.crop_padding, self.cutout = crop_padding, cutout
        self.splits: Splits | None = None

    def read_splits(self) -> Splits:
        """Reads the whole data set into memory. Raises UserError if it cannot."""
        raise NotImplementedError  # what a new data set has to write; all here do

    def setup(self, stage: str | None = None) -> None:
        """Reads the data, once. Raises UserError where there are too few images."""
        if self.splits is None:
            self.splits = self.read_splits()
        images, ranks = len(self.splits.train.labels), self._ranks()[1]
        if self.batch_size > images // ranks:
            on_devices = f" on {ranks} devices" if ranks > 1 else ""
            raise UserError(
                f"data.batch_size={self.batch_size} is larger than the training set of {images} "
                f"images{on_devices}; choose {images // ranks} or less"
            )
        smallest = min(self.image_shape[1:])
        wanted = f"smaller than the images' {smallest} pixels"
        require(self.crop_padding < smallest, "crop_padding", self.crop_padding, wanted)
        fewest = min(len(self.splits.val.labels), len(self.splits.test.labels))
        if ranks > fewest:
            raise UserError(f"trainer.devices={ranks}: there are only {fewest} images to evaluate")

    @property
    def classes(self) -> list[str]:
        return self.splits.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.splits.train.images.shape[1:])

    def record(self) -> dict[str, list]:
        """What a checkpoint needs to know of its data, in plain types."""
        return {
            "classes": list(self.classes),
            "mean": list(self.splits.mean),
            "std": list(self.splits.std),
            "image_shape": list(self.image_shape),
        }

    def train_dataloader(self) -> DataLoader:
        self._place()
        return self._loader(self.splits.train, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        self._place()
        return self._loader(self.splits.val, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        self._place()
        return self._loader(self.splits.test, self.eval_batch_size)

    def on_after_batch_transfer(
        self, batch: Sequence[Tensor], dataloader_idx: int = 0
    ) -> tuple[Tensor, Tensor]:
        images, labels = batch
        training = self.trainer is not None and self.trainer.training
        if training:
            crops = self.crop_scale, self.crop_ratio, self.crop_padding
            images = augment(images, self.flip, *crops)
        else:
            images = to_float(images)
        mean = _constant(self.splits.mean, images.device)
        std = _constant(self.splits.std, images.device)
        images = normalize(images, mean, std)
        if training and self.cutout:
            images = cutout(images, self.cutout)
        return images, labels

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _place(self) -> None:
        """Moves all images to the GPU, once, if they take less than half of its free memory."""
        device = self._device()
        if device.type != "cuda" or self.splits.train.images.device == device:
            return
        parts = {name: getattr(self.splits, name) for name in ("train", "val", "test")}
        size = sum(part.images.nbytes + part.labels.nbytes for part in parts.values())
        if size < torch.cuda.mem_get_info(device)[0] / 2:
            for name, part in parts.items():
                setattr(self.splits, name, LabelledImages(*(t.to(device) for t in part)))

    def _loader(
        self, data: LabelledImages, batch_size: int, shuffle_seed: int | None = None
    ) -> DataLoader:
        # The data is in memory: worker processes would only copy it.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        device = data.images.device
        indices = BatchIndices(len(data.labels), batch_size, shuffle_seed, *self._ranks(), device)
        return DataLoader(
            TensorDataset(*data),
            sampler=indices,
            batch_size=None,  # the dataset is indexed with a whole batch at once
            pin_memory=device.type == "cpu" and self._device().type == "cuda",
            generator=torch.Generator(),  # else every epoch draws from the global generator
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_range(value: Any, highest: float) -> bool:
    try:
        low, high = value
        return 0 < low <= high <= highest
    except (TypeError, ValueError):
        return False


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The statistics as a tensor (C,), copied to each device once and not at every step."""
    with torch.inference_mode(False):  # first used in validation, then in training
        return torch.tensor(values, device=device)
