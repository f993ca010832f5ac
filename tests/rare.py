"""Networks with something rare between two convolutions."""

from collections.abc import Callable

import torch
from networks import randomise
from torch import Tensor, nn
from torch.nn import functional as F

import sparsereg


class Rare(nn.Module):
    """Two convolutions, something rare between them, and a head."""

    def __init__(self, compute: Callable[["Rare", Tensor], Tensor], **parts):
        super().__init__()
        self.compute = compute
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        y = self.compute(self, F.relu(self.a(x)))
        return self.fc(F.relu(self.b(y)).mean((2, 3)))


def conv(kernel_size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(8, 8, kernel_size, padding=kernel_size // 2)


def examples() -> Tensor:
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0)).double()


def insert(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net.double().eval()
    return sparsereg.insert_gates(randomise(net), examples(), show=False).eval()
