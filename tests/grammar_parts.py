"""What the networks of `grammar` are made of: activations in all forms, odd layers."""

import torch
from torch import nn
from torch.nn import functional as F

SIZE = 6  # of images
ACTIVATIONS = {
    "module": lambda: nn.ReLU(),
    "in place": lambda: nn.ReLU(inplace=True),
    "GELU": lambda: nn.GELU(),
    "SiLU": lambda: nn.SiLU(),
    "sigmoid": lambda: nn.Sigmoid(),
    "function": lambda: F.relu,
    "torch": lambda: torch.tanh,
    "method": lambda: lambda x: x.relu(),
    "clamp": lambda: lambda x: x.clamp(-1, 1),
    "half": lambda: lambda x: 0.5 * x,
    "minus": lambda: lambda x: 1 - x,
    "divided": lambda: lambda x: x / 2.0,
    "power": lambda: lambda x: x**2,
    "none": lambda: lambda x: x,
}


class Block(nn.Module):
    """Some layers, and a function of them that computes: (N, c, H, W) -> (N, c', H', W')."""

    def __init__(self, compute, **parts):
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x, extra=None):
        return self.compute(self, x) if extra is None else self.compute(self, x) + extra


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 0.1)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormAct(nn.BatchNorm2d):
    """As timm's."""

    def __init__(self, width: int):
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.LeakyReLU(0.3)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Frozen(nn.Sequential):
    def train(self, mode: bool = True):
        return super().train(False)
