"""Networks with something rare between two convolutions."""

from collections.abc import Callable

import torch
from networks import assert_same, randomise, set_gates
from torch import Tensor, nn
from torch.nn import functional as F

import sparsereg
from sparsereg.compact import compact, fold


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


def assert_exact(gated: nn.Module, path) -> None:
    set_gates(gated, 0.5)
    x = examples()
    with torch.no_grad():
        expected, small = gated(x), compact(gated)
        assert_same(expected, small(x), 1e-9)
        assert_same(expected, fold(small)(x), 1e-9)
        sparsereg.save(gated.float(), path, (3, 9, 9), "abcde", [0.0] * 3, [1.0] * 3)
        # single precision, by whose rounding what varies among the images may be far off
        expected, found = gated(x.float()), sparsereg.load(path)(x.float())
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
