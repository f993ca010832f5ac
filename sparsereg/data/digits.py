"""scikit-learn's handwritten digits: 1,797 real images that need no download."""

import torch

from sparsereg.data.pipeline import ImageData, LabelledImages, Splits, require, split

SIZES = (1257, 180, 360)  # train, validation, test
MEAN, STD = 0.3048, 0.3180  # of the training images


class Digits(ImageData):
    """Ten classes of 8x8 grey images, enlarged to (3, image_size, image_size).

    Takes the arguments of `ImageData`; `flip` is off because a mirrored 2 is not a 2.

    Raises:
        UserError: an image_size below 8.
    """

    def __init__(self, image_size: int = 16, flip: bool = False, **pipeline) -> None:
        super().__init__(flip=flip, **pipeline)
        whole = type(image_size) is int and image_size >= 8
        require(whole, "image_size", image_size, "a whole number of at least 8")
        self.image_size = image_size

    def read_splits(self) -> Splits:
        from sklearn.datasets import load_digits  # slow to import

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)  # (N, 1, 8, 8)
        images = torch.nn.functional.interpolate(images, size=self.image_size, mode="bilinear")
        images = (images * (255 / 16)).round().to(torch.uint8)
        images = images.expand(-1, 3, -1, -1).contiguous()  # (N, 3, size, size)
        data = LabelledImages(images, torch.tensor(digits.target, dtype=torch.int64))
        classes = [str(name) for name in digits.target_names]
        return Splits(*split(data, *SIZES), classes, (MEAN,) * 3, (STD,) * 3)
