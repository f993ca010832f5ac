"""Well-known networks in the form that is usual for images of 32x32: a first convolution that keeps
the size of the image, and a small classifier."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn

from sparsereg.errors import UserError
from sparsereg.model.cifar_networks import (
    COLOUR,
    DenseNetBC,
    PreActBlock,
    PreActResNet18,
    ResNet,
    conv3x3,
    initialise,
)


def resnet18(num_classes: int, image_shape: Sequence[int] = COLOUR) -> nn.Module:
    """He et al. 2016, arXiv 1512.03385: torchvision's, with a 3x3 stem and no pooling behind it."""
    net = torchvision.models.resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


def vgg16_bn(num_classes: int, image_shape: Sequence[int] = COLOUR) -> nn.Module:
    """Simonyan and Zisserman 2015, arXiv 1409.1556: torchvision's features, one linear layer."""
    net = torchvision.models.vgg16_bn(num_classes=num_classes)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Linear(512, num_classes)
    if image_shape[0] != 3:
        net.features[0] = nn.Conv2d(image_shape[0], 64, 3, padding=1)
    return net


def mobilenet_v3_small(num_classes: int, image_shape: Sequence[int] = COLOUR) -> nn.Module:
    """Howard et al. 2019, arXiv 1905.02244: torchvision's, whose first layer keeps the size."""
    net = torchvision.models.mobilenet_v3_small(num_classes=num_classes)
    net.features[0][0].stride = (1, 1)
    if image_shape[0] != 3:
        net.features[0][0] = nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False)
    return net


def lenet5(num_classes: int, image_shape: Sequence[int] | None = None) -> nn.Module:
    """LeCun et al. 1998 with ReLU and the widths of Louizos et al. 2018 (arXiv 1712.01312): 20 and
    50 filters, 500 hidden units; 431,080 parameters for (1, 28, 28) images.

    None: as checkpoints have it that name no image shape.

    Raises:
        UserError: the images are too small.
    """
    if image_shape is None:
        return nn.Sequential(
            *(nn.Conv2d(3, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(5), nn.Flatten()),
            *(nn.Linear(50 * 25, 500), nn.ReLU(), nn.Linear(500, num_classes)),
        )
    in_channels, height, width = image_shape
    if min(height, width) < 16:
        raise UserError(f"lenet5 takes images of 16x16 and larger, not {height}x{width}")
    positions = ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
    layers = {
        # ReLU commutes with a maximum: behind it there is a quarter to do
        **{"conv1": nn.Conv2d(in_channels, 20, 5), "pool1": nn.MaxPool2d(2), "relu1": nn.ReLU()},
        **{"conv2": nn.Conv2d(20, 50, 5), "pool2": nn.MaxPool2d(2), "relu2": nn.ReLU()},
        **{"flatten": nn.Flatten(), "fc1": nn.Linear(50 * positions, 500), "relu3": nn.ReLU()},
        **{"fc2": nn.Linear(500, num_classes)},
    }
    for layer in layers.values():  # as the authors' code
        if hasattr(layer, "weight"):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(OrderedDict(layers))


class WideResNet(nn.Module):
    """WRN-depth-width, Zagoruyko and Komodakis 2016, arXiv 1605.07146: (N, C, H, W) -> logits.

    Args:
        num_classes: classes of the linear layer.
        image_shape: (C, H, W) of the images; only C matters.
        depth: convolutions on the longest path, 6 · blocks in each of three stages + 4.
        width: times the channels of a ResNet.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: Sequence[int] = COLOUR,
        depth: int = 28,
        width: int = 10,
    ):
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = conv3x3(image_shape[0], widths[0])
        blocks = []
        for stage, (c_in, c_out) in enumerate(pairwise(widths)):
            for number in range((depth - 4) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(PreActBlock(c_in if number == 0 else c_out, c_out, stride))
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.blocks(self.conv1(images))))
        return self.fc(self.pool(x).flatten(1))


NETWORKS = {
    "resnet18": resnet18,
    "wrn_28_10": WideResNet,
    "vgg16_bn": vgg16_bn,
    "mobilenet_v3_small": mobilenet_v3_small,
    "lenet5": lenet5,
    "resnet20": partial(ResNet, depth=20),
    "resnet56": ResNet,
    "resnet110": partial(ResNet, depth=110),
    "preact_resnet18": PreActResNet18,
    "densenet_bc_100": DenseNetBC,
}
