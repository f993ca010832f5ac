"""CIFAR-10 and CIFAR-100, downloaded and checked by torchvision."""

from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
from filelock import FileLock

from sparsereg.data.pipeline import ImageData, LabelledImages, Splits, require, split
from sparsereg.errors import UserError

STATISTICS = {  # mean and standard deviation of the training images, per channel
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class Cifar(ImageData):
    """32x32 colour images: 45,000 for training, 5,000 for validation, 10,000 for the test.

    Args:
        name: "cifar10" or "cifar100".
        root: folder of the archive, which is downloaded and unpacked there if need be.
        pipeline: the arguments of `ImageData`.
    """

    def __init__(self, name: str = "cifar10", root: str = "data", **pipeline) -> None:
        super().__init__(**pipeline)
        require(name in STATISTICS, "name", name, " or ".join(STATISTICS))
        require(bool(root), "root", root, "a folder")
        self.name, self.root = name, Path(root).expanduser()

    def prepare_data(self) -> None:
        """Downloads and unpacks what is missing; writes nothing if nothing is.

        Raises:
            UserError: if the data can be neither found nor downloaded, or not be written.
        """
        try:
            self._open(train=False)  # verifies the checksum of every file
        except (RuntimeError, OSError):  # absent, incomplete or damaged
            self._download()

    def read_splits(self) -> Splits:
        try:
            train, test = self._open(train=True), self._open(train=False)
        except (RuntimeError, OSError) as error:
            raise UserError(self._problem(error)) from error
        data = _tensors(train)
        held_out = len(data.labels) // 10
        train_part, val_part = split(data, len(data.labels) - held_out, held_out)
        mean, std = STATISTICS[self.name]
        return Splits(train_part, val_part, _tensors(test), list(train.classes), mean, std)

    def _dataset_class(self) -> type:
        from torchvision import datasets  # slow to import

        return datasets.CIFAR10 if self.name == "cifar10" else datasets.CIFAR100

    def _open(self, train: bool, download: bool = False):
        return self._dataset_class()(self.root, train=train, download=download)

    def _download(self) -> None:
        lock = self.root / f"{self._dataset_class().filename}.lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):  # torchvision's download is not atomic
                self._open(train=False, download=True)
        except (OSError, HTTPException, RuntimeError) as error:
            raise UserError(self._problem(error)) from error

    def _problem(self, error: Exception) -> str:
        """What to tell the user about an exception of torchvision."""
        files = self._dataset_class()
        archive, unpacked = self.root / files.filename, self.root / files.base_folder
        offline = isinstance(error, (URLError, HTTPException, ConnectionError, TimeoutError))
        if isinstance(error, OSError) and not offline:
            return f"data.root={self.root} cannot be used: {error}; choose another folder"
        if archive.exists():
            return (
                f"{archive} or what was unpacked from it in {unpacked} is damaged (wrong checksum)"
                f"{' and cannot be downloaded again' if offline else ''}; delete both, "
                f"then start again or put a good {files.filename} there"
            )
        if unpacked.exists() and not offline:
            return f"{unpacked} is damaged (wrong checksum); delete it and start again"
        return (
            f"{files.filename} is not in {self.root.absolute()} and cannot be downloaded "
            f"({error}); put it there by hand from {files.url}, or use data=digits, "
            "which needs no download"
        )


def _tensors(dataset) -> LabelledImages:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
    return LabelledImages(images, torch.tensor(dataset.targets, dtype=torch.int64))
