"""Residual and densely connected networks of the literature on images of 32x32."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COLOUR = (3, 32, 32)


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


def initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A): of every second pixel,
    and with zeros for the new channels. (N, c_in, H, W) -> (N, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(c_in, c_out, stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = conv3x3(c_out, c_out), nn.BatchNorm2d(c_out)
        self.stride, self.new_channels = stride, c_out - c_in

    def shortcut(self, x: Tensor) -> Tensor:
        if not self.new_channels:
            return x
        half = self.new_channels // 2
        sampled = x[:, :, :: self.stride, :: self.stride]
        return F.pad(sampled, (0, 0, 0, 0, half, self.new_channels - half))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


class ResNet(nn.Module):
    """ResNet-20, 32, 44, 56 and 110 for CIFAR-10, He et al. 2016, arXiv 1512.03385, section 4.2:
    (N, C, H, W) -> logits. ResNet-56 has 853,018 parameters and 125.5 million multiply-adds.

    Args:
        num_classes: classes of the linear layer.
        image_shape: (C, H, W) of the images; only C matters.
        depth: layers with weights, 6 · blocks in each of three stages + 2.
    """

    def __init__(self, num_classes: int, image_shape: Sequence[int] = COLOUR, depth: int = 56):
        super().__init__()
        widths = [16, 16, 32, 64]
        self.conv1, self.bn1 = conv3x3(image_shape[0], widths[0]), nn.BatchNorm2d(widths[0])
        for stage, (c_in, c_out) in enumerate(pairwise(widths), start=1):
            blocks = [BasicBlock(c_in, c_out, stride=1 if stage == 1 else 2)]
            blocks += [BasicBlock(c_out, c_out, stride=1) for _ in range((depth - 2) // 6 - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class PreActBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution twice, beside a shortcut: (N, c_in, H, W) ->
    (N, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1, self.conv2 = conv3x3(c_in, c_out, stride), conv3x3(c_out, c_out)
        self.shortcut = None
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(y))))


class PreActResNet18(nn.Module):
    """He et al. 2016, arXiv 1603.05027, in the width and depth of ResNet-18: (N, C, H, W) ->
    logits."""

    def __init__(self, num_classes: int, image_shape: Sequence[int] = COLOUR):
        super().__init__()
        widths = [64, 64, 128, 256, 512]
        self.conv1 = conv3x3(image_shape[0], widths[0])
        for stage, (c_in, c_out) in enumerate(pairwise(widths), start=1):
            first = PreActBlock(c_in, c_out, stride=1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", nn.Sequential(first, PreActBlock(c_out, c_out, 1)))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv1(images)))
        x = torch.relu(self.bn(self.layer4(self.layer3(x))))
        return self.fc(x.mean((2, 3)))


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution that add `growth` channels: (N, c_in, H, W) ->
    (N, c_in + growth, H, W)."""

    def __init__(self, c_in: int, growth: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.bn2(y)))], 1)


class DenseNetBC(nn.Module):
    """DenseNet-BC, Huang et al. 2017, arXiv 1608.06993: (N, C, H, W) -> logits. At depth 100 and
    growth 12 it has 769,162 parameters.

    Args:
        num_classes: classes of the linear layer.
        image_shape: (C, H, W) of the images; only C matters.
        depth: layers with weights, 6 · dense layers in each of three blocks + 4.
        growth: channels that each dense layer adds, k.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: Sequence[int] = COLOUR,
        depth: int = 100,
        growth: int = 12,
    ):
        super().__init__()
        width = 2 * growth
        layers: list[nn.Module] = [conv3x3(image_shape[0], width)]
        for block in range(3):
            if block > 0:  # half the channels, half the size
                layers += [nn.BatchNorm2d(width), nn.ReLU()]
                layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
                width //= 2
            for _ in range((depth - 4) // 6):
                layers.append(DenseLayer(width, growth))
                width += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))
