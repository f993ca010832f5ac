"""What holds while a network's code runs and is not in a graph is refused; what the code makes
itself, of a shape, is kept and counted."""

import pytest
import torch
from torch import nn

from sparsereg.compact import compact, fold
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.size import count
from sparsereg.surgery.insert import place_gates
from sparsereg.surgery.plain_graph import check_savable

SHAPE = (3, 16, 16)


class Network(nn.Module):
    """A backbone and a classifier, which subclasses put together."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        conv = (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


class Frozen(Network):
    def forward(self, x):
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x)


class Switched(Network):
    def forward(this, x):  # no `self`
        with torch.set_grad_enabled(False):
            x = this.backbone(x)
        return this.head(x)


class Data(Network):
    def forward(self, x):
        return self.head(self.backbone(x).data)


class Detached(Network):
    def forward(self, x):
        return self.head(self.backbone(x).detach())


class Cast(Network):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.head(self.backbone(x))


class Positions(Network):
    """Adds a map that is made of the image's height and width, for no image or for each."""

    def __init__(self, each: bool):
        super().__init__()
        self.embed, self.each = nn.Conv2d(1, 8, 1, bias=False), each

    def forward(self, x):
        x = self.backbone(x)
        n, _, height, width = x.shape
        weight = self.embed.weight
        rows = torch.arange(1, height + 1, device=weight.device).to(weight.dtype)
        rows = rows.view(1, 1, height, 1).repeat(n if self.each else 1, 1, 1, width)
        return self.head(x + self.embed(rows))


class Volume(Network):
    """A 3D convolution over the channels, whose weight has no channels_last."""

    def __init__(self):
        super().__init__()
        self.over = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.head(self.over(self.backbone(x).unsqueeze(1)).squeeze(1))


def gated(net: nn.Module) -> nn.Module:
    net, _ = place_gates(net, coupled=True, example=torch.zeros(1, *SHAPE))
    check_savable(net)
    return net


@pytest.mark.parametrize(
    "network, why",
    [
        (Frozen, "keeps gradients back"),
        (Switched, "keeps gradients back"),
        (Data, "keeps gradients back"),
        (Detached, "detach"),
        (Cast, "another precision"),
    ],
)
def test_refused_by_its_line(network, why):
    with pytest.raises(UserError, match=why) as error:
        gated(network())
    assert "test_contexts.py line" in str(error.value)
    assert "\n" not in str(error.value)


def test_gates_learn_also_where_the_caller_keeps_no_gradients():
    with torch.no_grad():
        net = gated(nn.Sequential(Network().backbone, Network().head))
    net(torch.randn(2, *SHAPE)).sum().backward()
    assert all(gate.qz_loga.grad is not None for gate in gate_layers(net).values())


class Joined(Network):
    """Joins vectors without a word about the dimension, as BEiT its biases."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(5))

    def forward(self, x):
        bias = torch.cat((self.first, self.second))
        return self.head(self.backbone(x) * bias.view(1, 8, 1, 1))


@pytest.mark.parametrize("net", [Positions(False), Positions(True), Volume(), Joined()])
def test_exact_and_counted(net):
    net = gated(net).double().eval()
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    for gate in gate_layers(net).values():
        gate.qz_loga.data.copy_(torch.linspace(-9, 3, len(gate.qz_loga)))
    cost = ExpectedCost(net, SHAPE)
    small = compact(net)
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(fold(small)(x), net(x), rtol=0, atol=1e-12)
    is_open = torch.cat([gate.qz_loga.detach() > -3 for gate in gate_layers(net).values()])
    found = cost.count(is_open)
    assert count(small, SHAPE) == {name: found[name] for name in ("params", "macs")}


def test_counts_by_hand():
    dense = ExpectedCost(gated(Positions(False)), SHAPE).dense
    assert dense["params"] == (3 * 8 * 9 + 8) + 8 + (8 * 8 * 9 + 8) + 8 * 10 + 10
    assert dense["macs"] == (3 * 8 * 9 + 8 + 8 * 8 * 9) * 16 * 16 + 8 * 10
