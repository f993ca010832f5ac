"""Networks as the literature on CIFAR writes them, for `benchmarks.networks`: of every kind that
the product does not have by name. All take (N, 3, 32, 32)."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsereg.model.cifar_networks import DenseNetBC
from sparsereg.model.small_images import WideResNet


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class ResNeXtBlock(nn.Module):
    """Xie et al. 2017, arXiv 1611.05431."""

    def __init__(self, c_in: int, width: int, cardinality: int, stride: int):
        super().__init__()
        inner = cardinality * width
        self.reduce = conv_bn(c_in, inner, 1)
        self.grouped = conv_bn(inner, inner, 3, stride, cardinality)
        self.expand = conv_bn(inner, 2 * inner, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != 2 * inner:
            self.shortcut = conv_bn(c_in, 2 * inner, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.grouped(F.relu(self.reduce(x))))
        out = self.expand(out)
        out += self.shortcut(x)
        return F.relu(out)


def resnext29(num_classes: int, cardinality: int = 8, width: int = 16) -> nn.Module:
    blocks, c_in = [], 64
    for stage in range(3):
        for number in range(3):
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(ResNeXtBlock(c_in, width, cardinality, stride))
            c_in = 2 * cardinality * width
        width *= 2
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, num_classes))
    return nn.Sequential(conv_bn(3, 64, 3), nn.ReLU(inplace=True), *blocks, *head)


class InvertedResidual(nn.Module):
    """Sandler et al. 2018, arXiv 1801.04381."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int):
        super().__init__()
        inner, act = expansion * c_in, nn.ReLU6(inplace=True)
        self.conv = nn.Sequential(
            *(conv_bn(c_in, inner, 1), act, conv_bn(inner, inner, 3, stride, inner), act),
            conv_bn(inner, c_out, 1),
        )
        self.use_res_connect = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    STAGES = (  # expansion, channels, blocks, stride
        *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )

    def __init__(self, num_classes: int):
        super().__init__()
        blocks, c_in = [conv_bn(3, 32, 3), nn.ReLU6(inplace=True)], 32
        for expansion, c_out, number, stride in self.STAGES:
            for i in range(number):
                blocks.append(InvertedResidual(c_in, c_out, expansion, stride if i == 0 else 1))
                c_in = c_out
        self.features = nn.Sequential(*blocks, conv_bn(c_in, 1280, 1), nn.ReLU6(inplace=True))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(x.view(x.size(0), -1))


class ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.first, self.second = conv_bn(c_in, c_out, 3, stride), conv_bn(c_out, c_out, 3)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else conv_bn(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))).add_(self.shortcut(x)))


class Tree(nn.Module):
    """A binary tree of blocks, whose leaves meet in a convolution of their concatenation (deep
    layer aggregation, Yu et al. 2018, arXiv 1707.06484)."""

    def __init__(self, c_in: int, c_out: int, levels: int, stride: int):
        super().__init__()
        block = ResidualBlock if levels == 1 else partial(Tree, levels=levels - 1)
        self.left = block(c_in, c_out, stride=stride)
        self.right = block(c_out, c_out, stride=1)
        self.root = conv_bn(2 * c_out, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        return F.relu(self.root(torch.cat([left, self.right(left)], dim=1)))


def simple_dla(num_classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise((3, 16, 16, 32)):
        layers += [conv_bn(c_in, c_out, 3), nn.ReLU()]
    for (c_in, c_out), levels in zip(pairwise((32, 64, 128, 256, 512)), (1, 2, 2, 1), strict=True):
        layers.append(Tree(c_in, c_out, levels, stride=1 if c_in == 32 else 2))
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, num_classes))


class Inception(nn.Module):
    """Szegedy et al. 2015, arXiv 1409.4842, with BatchNorm and two 3x3 for the 5x5."""

    def __init__(self, c_in: int, c1: int, red3: int, c3: int, red5: int, c5: int, pool: int):
        super().__init__()
        relu = nn.ReLU(True)
        self.b1 = nn.Sequential(conv_bn(c_in, c1, 1), relu)
        self.b2 = nn.Sequential(conv_bn(c_in, red3, 1), relu, conv_bn(red3, c3, 3), relu)
        self.b3 = nn.Sequential(
            *(conv_bn(c_in, red5, 1), relu, conv_bn(red5, c5, 3), relu, conv_bn(c5, c5, 3), relu)
        )
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(c_in, pool, 1), relu)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1)


def googlenet_6m(num_classes: int) -> nn.Module:
    blocks = [
        *(Inception(192, 64, 96, 128, 16, 32, 32), Inception(256, 128, 128, 192, 32, 96, 64)),
        nn.MaxPool2d(3, stride=2, padding=1),
        *(Inception(480, 192, 96, 208, 16, 48, 64), Inception(512, 160, 112, 224, 24, 64, 64)),
        *(Inception(512, 128, 128, 256, 24, 64, 64), Inception(512, 112, 144, 288, 32, 64, 64)),
        *(Inception(528, 256, 160, 320, 32, 128, 128), nn.MaxPool2d(3, stride=2, padding=1)),
        *(Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128)),
    ]
    head = (nn.AvgPool2d(8, stride=1), nn.Flatten(), nn.Linear(1024, num_classes))
    return nn.Sequential(conv_bn(3, 192, 3), nn.ReLU(True), *blocks, *head)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def convmixer(num_classes: int, width: int = 128, depth: int = 8, kernel: int = 5) -> nn.Module:
    """Trockman and Kolter 2022, arXiv 2201.09792, patches of 2x2."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 2, 2), nn.GELU(), nn.BatchNorm2d(width)]
    for _ in range(depth):
        mix = nn.Conv2d(width, width, kernel, groups=width, padding="same")
        layers.append(Residual(nn.Sequential(mix, nn.GELU(), nn.BatchNorm2d(width))))
        layers += [nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)]
    head = (nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(width, num_classes))
    return nn.Sequential(*layers, *head)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, tokens, width / heads) each
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(n, tokens, width))


class TinyViT(nn.Module):
    """Dosovitskiy et al. 2021, arXiv 2010.11929, at 192 channels, patches of 4x4."""

    def __init__(self, num_classes: int, width: int = 192, depth: int = 6, heads: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            mlp = (nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            norms = (nn.LayerNorm(width), nn.LayerNorm(width))
            self.blocks.append(nn.ModuleList([norms[0], Attention(width, heads), norms[1]]))
            self.blocks.append(nn.Sequential(*mlp))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (N, 64, width)
        x = torch.cat((self.token.expand(x.size(0), -1, -1), x), dim=1) + self.position
        for attention, mlp in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = x + attention[1](attention[0](x))
            x = x + mlp(attention[2](x))
        return self.head(self.norm(x)[:, 0])


LITERATURE = {
    "wrn_16_4": partial(WideResNet, depth=16, width=4),
    "densenet_bc_40": partial(DenseNetBC, depth=40),
    "resnext29": resnext29,
    "mobilenet_v2": MobileNetV2,
    "simple_dla": simple_dla,
    "googlenet_6m": googlenet_6m,
    "convmixer_128_8": convmixer,
    "tiny_vit": TinyViT,
}
