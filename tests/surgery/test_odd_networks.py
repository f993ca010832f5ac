"""Uncommon networks and files: the same outputs, or a UserError that says why not."""

import contextlib
import sys

import pytest
import torch
from networks import CLOSED, Net, assert_same, conv, head, images, randomise, set_gates
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sparsereg.compact import compact, fold
from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.readers import kept
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.surgery.plain_graph import build, describe

C = nn.Conv2d


def exact_or_refused(net, x=None):
    """Either the same outputs, or an error that says why not."""
    torch.manual_seed(0)
    net, x = randomise(net.double().eval()), images() if x is None else x
    set_gates(net, 0.5)
    expected = net(x).detach()
    try:
        small = compact(net)
        folded = fold(small)
    except UserError:
        return
    assert_same(expected, small(x).detach())
    assert_same(expected, folded(x).detach())


def gated(first, compute=lambda n, x: n.head(n.gate(F.relu(n.a(x)))), **layers):
    return Net(compute, a=first, gate=L0Gate(8), head=head(8), **layers)


def test_tied_weights():
    net = Net(
        lambda n, x: n.head(torch.cat([n.gate(F.relu(n.a(x))), n.other(F.relu(n.b(x)))], 1)),
        **{"a": C(3, 8, 3), "b": C(3, 8, 3), "gate": L0Gate(8), "other": L0Gate(8)},
        head=head(16),
    )
    net.b.weight = net.a.weight
    exact_or_refused(net)


def test_weight_norm():
    exact_or_refused(gated(weight_norm(C(3, 8, 3))))


def test_spectral_norm():
    exact_or_refused(gated(spectral_norm(C(3, 8, 3))))


class Standardised(C):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


def test_subclass_of_a_layer_with_another_forward():
    exact_or_refused(gated(Standardised(3, 8, 3)))


def in_place_function(n, x):
    y = n.a(x)
    F.relu(y, inplace=True)
    return n.head(n.gate(y))


def in_place_module(n, x):
    y = n.a(x)
    n.relu(y)
    return n.head(n.gate(y))


def in_place_addition(n, x):
    y = n.a(x)
    y.add_(n.b(x))
    return n.head(n.gate(y))


@pytest.mark.parametrize("compute", [in_place_function, in_place_module, in_place_addition])
def test_in_place_operation_whose_result_is_not_used(compute):
    exact_or_refused(gated(C(3, 8, 3), compute, b=C(3, 8, 3), relu=nn.ReLU(inplace=True)))


def test_fold_merges_over_an_in_place_activation():
    def compute(n, x):
        y = n.a(x)
        before = n.b(y)
        relu = n.relu(y)
        return n.head(before + n.c(y) + n.gate(relu))

    layers = {"b": C(8, 8, 1), "c": C(8, 8, 1), "relu": nn.ReLU(inplace=True)}
    exact_or_refused(gated(C(3, 8, 3), compute, **layers))


def test_a_closed_residual_block_is_no_collapse():
    net = Net(
        lambda n, x: n.head((y := n.stem(x)) + n.b(n.gate(n.a(y)))),
        **{"stem": conv(3, 8), "a": conv(8, 6), "gate": L0Gate(6), "b": C(6, 8, 3, padding=1)},
        head=head(8),
    )
    net = randomise(net.double().eval())
    net.gate.qz_loga.data.fill_(CLOSED)
    assert net(images()).std(0).max() > 1e-3, "the output depends on the input"
    try:
        assert_same(net(images()).detach(), compact(net)(images()).detach())
    except UserError as error:
        assert "no longer depends on its input" not in str(error)


def test_kept_names_a_gate_whose_channels_another_gate_removes():
    net = nn.Sequential(
        *(conv(3, 6), L0Gate(6), nn.BatchNorm2d(6), L0Gate(6), nn.Conv2d(6, 5, 1), head(5))
    )
    assert "1" in kept(ChannelGraph(net.eval()))


def test_kept_says_why_a_gate_on_the_input_removes_nothing():
    net = nn.Sequential(L0Gate(3), conv(3, 6), head(6))
    why = kept(ChannelGraph(net.eval()))["0"]
    assert "another layer reads it" not in why and "input" in why


@pytest.mark.parametrize(
    "compute",
    [
        lambda n, x: n.head(n.gate(F.relu(n.a(x)))[:, :8]),
        lambda n, x: n.head(n.gate(F.relu(n.a(x))) + n.c(x)[:, :8]),
        lambda n, x: n.linear(n.gate(F.relu(n.a(x))).reshape(len(x), -1)),
        lambda n, x: (n.a(x), n.c(x)),
        lambda n, x: {"logits": n.a(x)},
        lambda n, x: n.head(n.gate(F.relu(n.a(x))).mT),
        lambda n, x: n.linear(n.gate(F.relu(n.a(x))).view(n.c(x).size(0), -1)),
        lambda n, x: n.head(n.gate(F.relu(n.norm(input=n.a(x))))),
    ],
    ids=["slice", "slice added", "len", "tuple", "dict", "attribute", "only size", "keyword"],
)
def test_no_other_error(compute):
    layers = {"c": C(3, 12, 3), "linear": nn.Linear(8 * 36, 4), "norm": nn.BatchNorm2d(8)}
    net = gated(C(3, 8, 3), compute, **layers).double().eval()
    with contextlib.suppress(UserError):
        fold(compact(net))


def test_view_behind_channels_last():
    net = gated(
        C(3, 8, 3),
        lambda n, x: n.linear(n.gate(F.relu(n.a(x))).view(x.size(0), -1)),
        linear=nn.Linear(8 * 36, 4),
    )
    exact_or_refused(net)


def test_conv3d():
    net = Net(
        lambda n, x: n.linear(n.gate(F.relu(n.a(x))).flatten(1)),
        a=nn.Conv3d(3, 8, 3),
        gate=L0Gate(8),
        linear=nn.Linear(8 * 8, 4),
    )
    exact_or_refused(net, torch.randn(2, 3, 4, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("multiple", [0, -1, 1.5])
def test_round_to(multiple):
    with pytest.raises(ValueError, match="round_to"):
        compact(gated(C(3, 8, 3)), round_to=multiple)


X = ["x", "placeholder", "x", [], {}]


def read_then_extend(*steps):
    """getattr and getitem after one another, then sys.path += [folder]."""
    operations, last = [X], "x"
    for i, (function, argument) in enumerate(steps):
        operations.append([f"y{i}", "call_function", function, [{"result_of": last}, argument], {}])
        last = f"y{i}"
    return {
        "operations": [*operations, ["output", "output", "output", [{"result_of": last}], {}]],
        "layers": {},
    }


def test_a_file_cannot_change_this_process():
    get, item = "builtins.getattr", "_operator.getitem"
    steps = [(get, "backward"), (get, "__func__"), (get, "__globals__"), (item, "warnings")]
    steps += [(get, "sys"), (get, "path"), ("_operator.iadd", ["/tmp/evil"])]
    before = list(sys.path)
    try:
        with pytest.raises(UserError):
            build(read_then_extend(*steps))(torch.ones(1))
        assert sys.path == before
    finally:
        sys.path[:] = before


def test_only_the_shape_may_be_asked_for():
    with pytest.raises(UserError):
        build(read_then_extend(("builtins.getattr", "__class__")))


def test_keyword_as_input():
    with pytest.raises(UserError):
        build({"operations": [["x", "placeholder", "class", [], {}]], "layers": {}})


def test_folded_networks_cannot_be_described():
    """The file could not be read again: it would hold the function torch.split itself."""
    net = Net(
        lambda n, x: n.head(torch.cat([n.a(x), n.b(x)], 1)),
        a=C(3, 4, 1),
        b=C(3, 4, 1),
        head=head(8),
    )
    with pytest.raises(UserError):
        describe(fold(net))


def test_the_whole_cut_network_is_in_eval_mode():
    assert not any(
        module.training for module in compact(nn.Sequential(conv(3, 4), head(4))).modules()
    )
