"""One gate for a channel of a residual stream, at every layer that reads it, removes it from all
that write it."""

import pytest
import torch
from networks import CLOSED, Net, assert_same, conv, head, images, parameters, randomise
from torch import nn

from sparsereg.compact import compact, fold
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.model.small_images import NETWORKS
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.surgery.insert import insert_gates, place_gates

SHAPE = (3, 8, 8)


def residual() -> nn.Module:
    """A stream of 8 channels, written by three layers and read by three."""

    def compute(n, x):
        x = n.stem(x)
        x = x + n.out1(n.in1(x))
        return n.head(x + n.out2(n.in2(x)))

    layers = {"stem": conv(3, 8), "in1": conv(8, 6), "out1": conv(6, 8), "in2": conv(8, 6)}
    return Net(compute, **layers, out2=conv(6, 8), head=head(8))


def grouped() -> nn.Module:
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    return nn.Sequential(conv(3, 8, 1), layer, nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6, 1), head(6))


def open_gates(net: nn.Module) -> dict:
    gates = gate_layers(net)
    for gate in gates.values():
        gate.qz_loga.data.uniform_(-1, 3)
    return gates


def check(net: nn.Module) -> nn.Module:
    """The cut network: exact, and as large as predicted."""
    expected, small = net(images()).detach(), compact(net)
    assert_same(expected, small(images()).detach())
    assert_same(expected, fold(small)(images()).detach())
    is_open = torch.cat([gate.qz_loga.detach() > -5 for gate in gate_layers(net).values()])
    assert ExpectedCost(net, SHAPE).count(is_open)["params"] == parameters(small)
    return small


def test_a_channel_of_a_stream_goes_from_all_that_write_and_read_it():
    net = randomise(residual().double().eval())
    gated, places = place_gates(net, coupled=True)
    gates = open_gates(gated.double().eval())
    assert {name: len(gate.qz_loga) for name, gate in gates.items()} == {
        **{"in1.0": 6, "in2.0": 6, "stem.0": 8}
    }
    goes = {place.layer: place.goes for place in places}
    assert goes["stem.0"] == ("out1.0", "out2.0")
    gates["stem.0"].qz_loga.data[2:] = CLOSED
    small = check(gated)
    widths = [small.get_submodule(name).out_channels for name in ("stem.0", "out1.0", "out2.0")]
    assert widths == [2, 2, 2] and small.get_submodule("in2.0").in_channels == 2


def test_without_it_the_stream_stays():
    gated, places = place_gates(residual())
    assert [*gate_layers(gated)] == ["in1.0", "in2.0"]
    why = {place.layer: place.why_not for place in places}
    assert "it is added to another tensor" in why["stem.0"]


def test_a_group_goes_as_a_whole():
    net = randomise(grouped().double().eval())
    gated, _ = place_gates(net, coupled=True)
    gates = open_gates(gated.double().eval())
    assert len(gates["0.0"].qz_loga) == 4, "two channels each"
    gates["0.0"].qz_loga.data[1] = CLOSED
    small = check(gated)
    layer = small.get_submodule("1")
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 6, 6)


def test_gates_are_shared_in_training_too():
    """One draw for each image and channel, wherever it is read."""
    torch.manual_seed(0)
    gated, _ = place_gates(residual(), coupled=True)
    seen = []
    for name, module in gated.named_modules():
        if name.startswith("shared_"):
            module.register_forward_hook(
                lambda m, i, o: seen.append((o == 0).view(*o.shape[:2], -1))
            )
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.fill_(0.0)
    gated.train()(images().float())
    first, second, last = (zeros.all(dim=2) for zeros in seen)
    assert first.any() and not first.all()
    assert torch.equal(first, second) and torch.equal(first, last)


def test_what_the_gates_can_reach_is_said(capsys):
    net = nn.Sequential(conv(3, 32), conv(32, 32), conv(32, 2), head(2))
    insert_gates(net, images().float(), include=["2.0"], show=False)
    said = capsys.readouterr().out
    assert "warning" in said and "at most" in said
    insert_gates(residual(), images().float(), show=False)
    assert capsys.readouterr().out == "", "enough can go"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "densenet_bc_100"])
def test_nearly_everything_of_the_literature_can_go(name):
    gated, _ = place_gates(NETWORKS[name](10), coupled=True, example=torch.zeros(1, 3, 32, 32))
    cost = ExpectedCost(gated, (3, 32, 32))
    assert min(cost.highest_sparsity(what, 1) for what in ("params", "macs")) > 0.97
