"""Well-known networks in the form that is usual for images of 32x32: a first convolution that keeps
the size of the image, and a small classifier."""

from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn


def resnet18(num_classes: int) -> nn.Module:
    """He et al. 2016, arXiv 1512.03385: torchvision's, with a 3x3 stem and no pooling behind it."""
    net = torchvision.models.resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


def vgg16_bn(num_classes: int) -> nn.Module:
    """Simonyan and Zisserman 2015, arXiv 1409.1556: torchvision's features, one linear layer."""
    net = torchvision.models.vgg16_bn(num_classes=num_classes)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Linear(512, num_classes)
    return net


def mobilenet_v3_small(num_classes: int) -> nn.Module:
    """Howard et al. 2019, arXiv 1905.02244: torchvision's, whose first layer keeps the size."""
    net = torchvision.models.mobilenet_v3_small(num_classes=num_classes)
    net.features[0][0].stride = (1, 1)
    return net


def lenet5(num_classes: int) -> nn.Module:
    """LeCun et al. 1998 with ReLU and the widths of Louizos et al. 2018, for colour images.

    The second pooling leaves 5x5 positions, whatever the size of the image (half, for 32x32).
    """
    return nn.Sequential(
        *(nn.Conv2d(3, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(5), nn.Flatten()),
        *(nn.Linear(50 * 25, 500), nn.ReLU(), nn.Linear(500, num_classes)),
    )


class WideBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution twice, beside a shortcut: (N, c_in, H, W) ->
    (N, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut = None
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(y))))


class WideResNet(nn.Module):
    """WRN-depth-width, Zagoruyko and Komodakis 2016, arXiv 1605.07146: (N, 3, H, W) -> logits.

    Args:
        num_classes: classes of the linear layer.
        depth: convolutions on the longest path, 6 · blocks in each of three stages + 4.
        width: times the channels of a ResNet.
    """

    def __init__(self, num_classes: int, depth: int = 28, width: int = 10):
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        blocks = []
        for stage, (c_in, c_out) in enumerate(pairwise(widths)):
            for number in range((depth - 4) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(WideBlock(c_in if number == 0 else c_out, c_out, stride))
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.blocks(self.conv1(images))))
        return self.fc(self.pool(x).flatten(1))


NETWORKS = {
    "resnet18": resnet18,
    "wrn_28_10": WideResNet,
    "vgg16_bn": vgg16_bn,
    "mobilenet_v3_small": mobilenet_v3_small,
    "lenet5": lenet5,
}
