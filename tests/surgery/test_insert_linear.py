"""Gates where linear layers, squeezed channels or groups are."""

import pytest
import torch
from networks import (
    CLOSED,
    Net,
    assert_same,
    conv,
    head,
    images,
    randomise,
    set_gates,
)
from torch import nn

from sparsereg.compact import compact, fold
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.surgery.insert import insert_gates, place_gates
from sparsereg.surgery.plain_graph import build, describe


class SqueezeExcitation(nn.Module):
    """As in most people's code, after Hu et al. 2018."""

    def __init__(self, channels: int):
        super().__init__()
        self.pool, self.act = nn.AdaptiveAvgPool2d(1), nn.Sigmoid()
        self.squeeze, self.excite = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x):
        size, channels, _, _ = x.size()
        y = self.pool(x).view(size, channels)
        y = self.act(self.excite(torch.relu(self.squeeze(y)))).view(size, channels, 1, 1)
        return x * y.expand_as(x)


def test_squeeze_excitation_with_linear_layers():
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 8), SqueezeExcitation(8), nn.Conv2d(8, 5, 3), nn.ReLU(), head(5))
    gated, places = place_gates(randomise(net.double().eval()))
    assert list(gate_layers(gated)) == ["0.0", "1.squeeze", "2"]
    assert {p.layer: p.why_not for p in places}["1.excite"] == "goes with the channels of 0.0"
    for gate in gate_layers(gated).values():
        gate.qz_loga.data[1:3] = CLOSED
    expected, small = gated(images()).detach(), compact(gated)
    assert small.get_submodule("1.excite").out_features == 6
    rebuilt = build(describe(small)).double().eval()
    rebuilt.load_state_dict(small.state_dict())
    for other in (small, fold(small), rebuilt):
        assert_same(expected, other(images()).detach())


def test_a_grouped_convolution_keeps_its_channels():
    net = Net(
        lambda n, x: n.head(n.b(n.grouped(n.a(x)))),
        **{
            "a": conv(3, 8),
            "grouped": nn.Conv2d(8, 12, 3, groups=4),
            "b": conv(12, 5),
            "head": head(5),
        },
    )
    gated, places = place_gates(net)
    why = {place.layer: place.why_not for place in places}
    assert list(gate_layers(gated)) == ["b.0"]
    assert "grouped" in why["a.0"] and "grouped" in why["grouped"]


def flattening() -> nn.Sequential:
    """Three linear layers behind two convolutions: of 4 positions, of one, and the logits."""
    return nn.Sequential(
        *(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.LeakyReLU(),
            nn.Conv2d(6, 5, 3, padding=1),
            nn.LeakyReLU(),
        ),
        *(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(20, 9), nn.LeakyReLU(), nn.Linear(9, 8)),
        *(nn.LeakyReLU(), nn.Linear(8, 4)),
    )


def test_gates_on_the_inputs_of_linear_layers():
    """Where those behind the layer before do not close each of them."""
    net, places = place_gates(flattening(), gate_inputs="*")
    widths = {name: len(gate.qz_loga) for name, gate in gate_layers(net).items()}
    assert widths == {"0": 6, "2": 5, "6_inputs": 20, "6": 9, "8": 8}
    why = {place.gate: place.why_not for place in places}
    assert why["8_inputs"] == "the gates of 6 close them"
    assert why["10_inputs"] == "the gates of 8 close them"
    alone, _ = place_gates(flattening(), include=(), gate_inputs=["8", "10"])
    widths = {name: len(gate.qz_loga) for name, gate in gate_layers(alone).items()}
    assert widths == {"8_inputs": 9, "10_inputs": 8}


@pytest.mark.parametrize("include", ["*", ()])
def test_the_cut_network_reads_the_features_that_are_left(include):
    torch.manual_seed(0)
    net, _ = place_gates(flattening(), include=include, gate_inputs="*")
    net, x = net.double().eval(), images()
    set_gates(net, 0.7)
    with torch.no_grad():
        assert_same(net(x), compact(net)(x), 1e-9)


def test_inputs_of_no_linear_layer():
    with pytest.raises(UserError, match=r"gate_inputs: no linear layer is named 2: .*6, 8, 10"):
        place_gates(flattening(), gate_inputs="2")


def test_the_table_names_inputs(capsys):
    insert_gates(flattening(), torch.randn(2, 3, 8, 8), gate_inputs="6")
    assert "inputs of 6" in capsys.readouterr().out
