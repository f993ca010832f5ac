"""MNIST, downloaded by torchvision and checked here."""

from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from sparsereg.data.pipeline import ImageData, LabelledImages, Splits, require, split
from sparsereg.errors import UserError

HELD_OUT = 5000  # of the 60,000 training images, for validation
MD5 = {  # of the unpacked files; torchvision only knows those of the archives
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class Mnist(ImageData):
    """28x28 grey images, (1, 28, 28): 55,000 for training, 5,000 for validation, 10,000 for the
    test; in [0, 1], not normalised further.

    Args:
        root: folder with MNIST/raw, which is downloaded and unpacked there if need be.
        flip: off, because a mirrored 2 is not a 2.
        pipeline: the other arguments of `ImageData`.
    """

    def __init__(self, root: str = "data", flip: bool = False, **pipeline) -> None:
        super().__init__(flip=flip, **pipeline)
        require(bool(root), "root", root, "a folder")
        self.root = Path(root).expanduser()

    def prepare_data(self) -> None:
        """Downloads and unpacks what is missing; writes nothing if nothing is.

        Raises:
            UserError: if the data can be neither found nor downloaded, or not be written.
        """
        try:
            self._open(train=False)
        except (RuntimeError, OSError):  # absent, incomplete or damaged
            self._download()

    def read_splits(self) -> Splits:
        try:
            train, test = self._open(train=True), self._open(train=False)
        except (RuntimeError, OSError) as error:
            raise UserError(self._problem(error)) from error
        data, classes = _tensors(train), [name[0] for name in train.classes]
        held_out = min(HELD_OUT, len(data.labels) // 12)
        train_part, val_part = split(data, len(data.labels) - held_out, held_out)
        return Splits(train_part, val_part, _tensors(test), classes, (0.0,), (1.0,))

    def _open(self, train: bool, download: bool = False):
        from torchvision import datasets  # slow to import
        from torchvision.datasets.utils import check_integrity

        class MNIST(datasets.MNIST):  # whose name is that of the folder
            def _check_exists(self) -> bool:
                return all(check_integrity(f"{self.raw_folder}/{n}", md5) for n, md5 in MD5.items())

        return MNIST(self.root, train=train, download=download)

    def _download(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / "MNIST.lock"):  # torchvision's download is not atomic
                self._open(train=False, download=True)
        except (OSError, EOFError, HTTPException, RuntimeError) as error:
            raise UserError(self._problem(error)) from error

    def _problem(self, error: Exception) -> str:
        """What to tell the user about an exception of torchvision."""
        folder, archives = self.root / "MNIST" / "raw", "train- and t10k-….gz"
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            return f"data.root={self.root} cannot be used: {error}; choose another folder"
        if folder.exists() and any(folder.iterdir()):
            return (
                f"a file in {folder} is missing or damaged (wrong checksum), and cannot be "
                f"downloaded ({text}); delete the folder, then start again or put good {archives} "
                "there"
            )
        return (
            f"MNIST is not in {folder.absolute()} and cannot be downloaded ({text}); put the four "
            f"{archives} there by hand, or use data=digits, which needs no download"
        )


def _tensors(dataset) -> LabelledImages:
    return LabelledImages(dataset.data.unsqueeze(1), dataset.targets.long())  # (N, 1, 28, 28)
