"""Folding: the same outputs with fewer operations."""

import copy

import pytest
import torch
from networks import Net, assert_same, conv, googlenet, head, images, randomise
from torch import nn

from sparsereg.compact import compact, fold, without_gates
from sparsereg.errors import UserError
from sparsereg.model.googlenet import ACTIVATIONS


def number_of(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in net.modules())


@pytest.mark.parametrize("act_fn_name", ACTIVATIONS)
def test_the_dense_googlenet(act_fn_name):
    """All BatchNorm layers go, and of each block three 1x1 convolutions become one."""
    net, x = without_gates(googlenet(act_fn_name)), images(16)
    folded = fold(net)
    assert_same(net(x).detach(), folded(x))
    assert number_of(net, nn.BatchNorm2d) == 49 and number_of(folded, nn.BatchNorm2d) == 0
    assert number_of(net, nn.Conv2d) == 49 and number_of(folded, nn.Conv2d) == 49 - 8 * 2
    activations = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Tanh)
    called = [folded.get_submodule(n.target) for n in folded.graph.find_nodes(op="call_module")]
    assert sum(isinstance(module, activations) for module in called) == 49 - 8 * 2


def test_weights_are_channels_last_and_fixed():
    folded = fold(compact(googlenet()))
    weights = [p for p in folded.parameters() if p.dim() == 4]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not folded.training


def test_the_original_is_not_changed():
    net = compact(googlenet()).train()
    before, code = copy.deepcopy(net.state_dict()), net.code
    fold(net)
    assert net.training and net.code == code
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_gates_are_refused():
    with pytest.raises(UserError, match=r"has gates.*compact"):
        fold(googlenet())


def test_only_alike_convolutions_become_one():
    """Of six that read one tensor b and c, with one activation, and e and f, without any."""

    def compute(n, x):
        return n.head(torch.cat([n.a(x), n.b(x), n.c(x), n.d(x), n.e(x), n.f(x)], 1))

    torch.manual_seed(0)
    layers = {"a": conv(3, 4, 1, nn.ReLU), "b": conv(3, 5, 1, nn.GELU), "c": conv(3, 6, 1, nn.GELU)}
    plain = {"e": nn.Conv2d(3, 2, 1, bias=False), "f": nn.Conv2d(3, 3, 1)}
    net = Net(compute, **layers, **plain, d=conv(3, 4, 3, nn.GELU), head=head(24))
    net, x = randomise(net.double().eval()), images()
    folded = fold(net)
    assert_same(net(x).detach(), folded(x))
    widths = [m.out_channels for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(widths) == sorted([4, 5 + 6, 4, 2 + 3])


UNFOLDED = {
    "BatchNorm before": (lambda n, x: n.head(n.conv(n.norm(x))), 3),
    "read by others too": (lambda n, x: n.head(n.norm(y := n.conv(x)) + y), 4),
    "no statistics": (lambda n, x: n.head(n.fresh(n.conv(x))), 4),
}


@pytest.mark.parametrize("compute, width", UNFOLDED.values(), ids=UNFOLDED)
def test_batch_norms_that_must_stay(compute, width):
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 4, 3, padding=1), "norm": nn.BatchNorm2d(width)}
    fresh = nn.BatchNorm2d(width, track_running_stats=False)
    net = randomise(Net(compute, **layers, head=head(4)).double().eval())
    net.add_module("fresh", fresh.double().eval())
    folded, x = fold(net), images()
    assert_same(net(x).detach(), folded(x))
    assert number_of(folded, nn.BatchNorm2d) == 1
