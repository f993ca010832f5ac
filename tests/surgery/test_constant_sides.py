"""A branch without open gates is a constant: also one that is subtracted, or divides."""

import pytest
import torch
from torch import nn

from sparsereg.compact import compact
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.model.layers import ChannelScale, ChannelShift
from sparsereg.surgery.insert import place_gates

SHAPE = (3, 8, 8)
JOINS = {
    "x + c": (lambda x, c: x + c, ChannelShift),
    "x - c": (lambda x, c: x - c, ChannelShift),
    "torch.sub": (lambda x, c: torch.sub(x, c), ChannelShift),
    "x.sub(c)": (lambda x, c: x.sub(c), ChannelShift),
    "torch.subtract": (lambda x, c: torch.subtract(x, c), ChannelShift),
    "x.subtract(c)": (lambda x, c: x.subtract(c), ChannelShift),
    "x * c": (lambda x, c: x * c, ChannelScale),
    "x / c": (lambda x, c: x / c, None),
    "x.div(c)": (lambda x, c: x.div(c), None),
    "torch.true_divide": (lambda x, c: torch.true_divide(x, c), None),
    "c.divide(x)": (lambda x, c: c.divide(x), None),
    "c + x": (lambda x, c: c + x, ChannelShift),
    "c - x": (lambda x, c: c - x, None),
    "c / x": (lambda x, c: c / x, None),
    "alpha": (lambda x, c: torch.add(x, c, alpha=2), None),
    "rounded": (lambda x, c: torch.div(x, c, rounding_mode="floor"), None),
}


class Joined(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.join, self.stem = join, nn.Sequential(nn.Conv2d(3, 5, 1), nn.Softplus())
        self.inner, self.outer = nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10))

    def forward(self, images):
        x = self.stem(images)
        return self.head(self.join(x, self.outer(self.inner(x))))


@pytest.mark.parametrize("join, layer", JOINS.values(), ids=JOINS)
def test_constant(join, layer):
    torch.manual_seed(0)
    net, _ = place_gates(Joined(join), coupled=False, example=torch.zeros(1, *SHAPE))
    net = net.double().eval()
    gates = gate_layers(net)
    gates["inner"].qz_loga.data.fill_(-10.0)
    small, x = compact(net), torch.randn(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(small(x), net(x), rtol=1e-9, atol=0)
    found = {type(module) for module in small.modules()} & {ChannelShift, ChannelScale}
    assert found == ({layer} if layer else set())
