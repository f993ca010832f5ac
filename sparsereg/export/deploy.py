"""What a program that runs an exported file has to know: the classes, the images, the size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import sparsereg
from sparsereg.choices import NORMALISE
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.size import count, dense_size, measure


class Normalised(nn.Module):
    """A network that takes images as files have them, uint8 (N, C, H, W) in 0..255."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))  # (C, 1, 1)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images.float() / 255 - self.mean) / self.std)


def deployment(
    net: nn.Module,
    image_shape: Sequence[int],
    classes: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    normalise: str,
) -> dict:
    """The content of deploy.json, and of the metadata in the files: plain types.

    Args:
        net: with gates, or cut.
        image_shape, classes, mean, std, normalise: see `export`.

    Raises:
        UserError: no way to normalise, or statistics of another number of channels.
    """
    if normalise not in NORMALISE:
        raise UserError(f"normalise={normalise} must be one of {', '.join(NORMALISE)}")
    if normalise == "inside" and (mean is None or std is None):
        raise UserError("normalise=inside needs mean=… and std=…, of images scaled to [0, 1]")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != image_shape[0]:
            raise UserError(f"{name} has {len(values)} values for {image_shape[0]} channels")
    if gate_layers(net):
        size = measure(net, tuple(image_shape))
    else:
        size = count(net, tuple(image_shape))
        size["sparsity"] = 1 - size["params"] / dense_size(net, tuple(image_shape))["params"]
    kind = "uint8" if normalise == "inside" else "float32"
    return {
        "version": sparsereg.__version__,
        "input": {"name": "images", "type": kind, "shape": ["batch", *image_shape]},
        "output": {"name": "logits", "type": "float32"},
        "normalise": normalise,
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "classes": list(classes),
        "sparsity": size["sparsity"],
        "params": size["params"],
        "macs": size["macs"],
    }
