"""What a norm or attention makes is there as a whole, but layers behind it need not read all of it:
gates start anew, and the cut network selects."""

import pytest
import torch
from networks import CLOSED, Net, assert_same, conv, head, images, parameters
from torch import nn
from torch.nn import functional as F

from sparsereg.compact import compact, fold
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.surgery.compaction import cut_closed
from sparsereg.surgery.insert import insert_gates, place_gates

SHAPE = (3, 8, 8)


def group_norms() -> nn.Module:
    def block(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(2, c_out), nn.ReLU()]

    return nn.Sequential(*block(3, 8), *block(8, 6), head(6))


def attention() -> nn.Module:
    """Queries, keys and values of 64 positions from what one norm makes of 8 channels."""

    def compute(n, x):
        x = n.stem(x).flatten(2).transpose(1, 2)  # (N, 64, 8)
        y = n.norm(x)
        x = x + n.out(F.scaled_dot_product_attention(n.q(y), n.k(y), n.v(y)))
        return n.last(x.mean(dim=1))

    layers = {name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")}
    return Net(compute, stem=conv(3, 8), norm=nn.LayerNorm(8), **layers, last=nn.Linear(8, 4))


def response_norm() -> nn.Module:
    """ConvNeXt V2's: each channel by the length of all, and itself."""

    def compute(n, x):
        x = n.expand(n.stem(x))
        length = x.norm(dim=(2, 3), keepdim=True)
        return n.head(n.shrink(x + x * (length / (length.mean(dim=1, keepdim=True) + 1e-6))))

    layers = {"expand": conv(4, 12, act=nn.GELU), "shrink": nn.Conv2d(12, 5, 1)}
    return Net(compute, stem=conv(3, 4), **layers, head=head(5))


def with_gates(net: nn.Module, share: float) -> nn.Module:
    gated, _ = place_gates(net.double().eval(), coupled=True, behind_barriers=True)
    gated = gated.double().eval()
    torch.manual_seed(0)
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.uniform_(-1, 3)
        gate.qz_loga.data[torch.rand(len(gate.qz_loga)) > share] = CLOSED
        gate.qz_loga.data[0] = 1.0
    return gated


@pytest.mark.parametrize("share", [0.8, 0.3])
@pytest.mark.parametrize("make", [group_norms, attention, response_norm])
def test_the_cut_network_is_exact_and_as_large_as_predicted(make, share):
    gated = with_gates(make(), share)
    assert any(name.endswith("_inputs") for name in gate_layers(gated))
    expected, small = gated(images()).detach(), compact(gated)
    assert_same(expected, small(images()).detach())
    assert_same(expected, fold(small)(images()).detach())
    is_open = torch.cat([gate.qz_loga.detach() > -5 for gate in gate_layers(gated).values()])
    assert ExpectedCost(gated, SHAPE).count(is_open)["params"] == parameters(small)


def test_only_what_is_read_goes():
    """By hand: two norms of all channels, and the inputs of the layers behind them."""
    gated = with_gates(group_norms(), 1.0)
    gates = gate_layers(gated)
    assert {name: len(gate.qz_loga) for name, gate in gates.items()} == {
        "3_inputs": 8,
        "6.2_inputs": 6,
    }
    gates["3_inputs"].qz_loga.data[3:] = CLOSED
    gates["6.2_inputs"].qz_loga.data[1:] = CLOSED
    norms = 2 * 8 + 2 * 6
    assert parameters(compact(gated)) == (3 * 9 * 8 + 8) + (3 * 9 * 6 + 6) + (1 * 4 + 4) + norms


def test_layers_that_read_the_same_share_its_gates():
    _, places = place_gates(attention(), coupled=True, behind_barriers=True)
    inputs = {place.layer: place.goes for place in places if place.is_input}
    assert inputs == {"q": ("k", "v"), "out": (), "last": ()}


def test_a_norm_of_the_image_itself_has_no_gates():
    net = nn.Sequential(nn.InstanceNorm2d(3), conv(3, 8), conv(8, 6), head(6))
    gated, _ = place_gates(net, coupled=True, behind_barriers=True)
    assert [*gate_layers(gated)] == ["1.0", "2.0"]


def test_excluded_layers_read_everything():
    gated, _ = place_gates(group_norms(), exclude="3", behind_barriers=True)
    assert [*gate_layers(gated)] == ["6.2_inputs"]


def test_without_them(capsys):
    with pytest.raises(UserError, match="no channels that can be removed: 1 reads all of them"):
        insert_gates(group_norms(), images().float(), behind_barriers=False)
    insert_gates(group_norms(), images().float())
    assert "inputs of 3" in capsys.readouterr().out


def test_closed_inputs_leave_what_the_bias_makes():
    gated = with_gates(group_norms(), 1.0)
    gate_layers(gated)["3_inputs"].qz_loga.data.fill_(CLOSED)
    expected = gated(images()).detach()
    assert torch.equal(expected, expected[:1].expand(4, -1)), "the image is lost"
    with pytest.raises(UserError):
        cut_closed(gated)
