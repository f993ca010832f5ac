"""What a cut GoogleNet is: which layers and weights remain, and that it trains on."""

import copy

import pytest
import torch
from networks import (
    CLOSED,
    OPEN,
    Net,
    assert_same,
    conv,
    gates_of,
    googlenet,
    head,
    images,
    parameters,
    set_gates,
)
from torch import nn
from torch.nn import functional as F

from sparsereg.compact import Collapsed, compact, fold, without_gates
from sparsereg.model.basic_l0_blocks import L0Gate, deterministic_gate
from sparsereg.model.googlenet import GoogleNet
from sparsereg.model.layers import ChannelScale


def norms_of(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def last_layer(branch: str) -> str:
    """The name of the convolution whose outputs are the channels of a branch."""
    block, kind = branch.split("/")
    return f"blocks.{block}.branches.{kind}" + (".0" if kind == "1x1" else ".1.0")


@pytest.mark.parametrize("training", [False, True])
def test_the_original_is_not_changed(training):
    net = googlenet().train(training)
    before = copy.deepcopy(net.state_dict())
    small, x = compact(net), images(16)
    fold(small)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7)
    assert net.training == training and all(m.training == training for m in net.modules())
    assert not small.training and not any(norm.training for norm in norms_of(small))
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.no_grad():  # trained or not, it is the network of eval mode that is cut
        assert_same(net.eval()(x), compact(net.train(training))(x))


def test_names_stay_and_gates_go():
    net = googlenet()
    small = compact(net)
    assert small.state_dict().keys() == {k for k in net.state_dict() if "qz_loga" not in k}
    assert not any(isinstance(module, L0Gate | ChannelScale) for module in small.modules())


@pytest.mark.parametrize("branch", ["block1/max", "block2/3x3", "block8/5x5"])
def test_a_closed_branch_is_gone_with_its_reduction(branch):
    net = googlenet()
    net.gates[branch].qz_loga.data.fill_(CLOSED)
    name = f"blocks.{branch.replace('/', '.branches.')}."
    remaining = compact(net).state_dict().keys()
    gone = {key for key in net.state_dict() if key.startswith(name)}
    assert gone and net.state_dict().keys() - remaining == gone | {
        key for key in net.state_dict() if "qz_loga" in key
    }


def test_what_is_gone_asks_for_nothing():
    """A closed branch reads all channels of the tensor before it, but is not there any more."""
    net = Net(
        lambda n, x: n.head(torch.cat([n.other(n.b(y := n.a(x))), n.gate(y)], 1)),
        **{"a": conv(3, 6), "gate": L0Gate(6), "b": conv(6, 5), "other": L0Gate(5)},
        head=head(11),
    )
    set_gates(net, 0.0)  # one of each is open
    assert compact(net).get_submodule("a.0").out_channels == 6
    net.other.qz_loga.data.fill_(CLOSED)
    assert compact(net).get_submodule("a.0").out_channels == 1


@pytest.mark.parametrize("block, reader", [(1, "blocks.block2"), (5, "blocks.block6"), (8, "head")])
def test_a_closed_block_is_an_error_that_says_where(block, reader):
    net = googlenet()
    for gate in net.blocks[f"block{block}"].gates.values():
        gate.qz_loga.data.fill_(CLOSED)
    with pytest.raises(Collapsed) as error:
        compact(net)
    for word in (reader, *(f"block{block}.gates.{b}" for b in ("1x1", "3x3", "5x5", "max"))):
        assert word in str(error.value)
    assert "lambda_l0" in str(error.value), "what to do"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("multiple", [1, 8])
def test_widths_are_rounded_up(multiple):
    net, x = googlenet(share=0.3), images(16)
    net.gates["block3/5x5"].qz_loga.data.fill_(CLOSED)
    small = compact(net, round_to=multiple)
    for branch, gate in net.gates.items():
        n_open = int((deterministic_gate(gate.qz_loga) > 0).sum())
        if n_open:
            expected = min(-(-n_open // multiple) * multiple, len(gate.qz_loga))
            assert small.get_submodule(last_layer(branch)).out_channels == expected, branch
    assert not any("block3.branches.5x5" in name for name in small.state_dict())
    with torch.no_grad():
        assert_same(net(x), small(x))
        assert_same(net(x), fold(small)(x))


def test_nothing_is_rounded_unless_asked_for():
    net = googlenet()
    assert parameters(compact(net)) == parameters(compact(net, 1)) < parameters(compact(net, 8))


def test_relu_gates_go_into_batch_norm():
    """z relu(w x + b) = relu(z w x + z b) for z > 0."""
    net = googlenet("relu")
    small, z = compact(net), deterministic_gate(net.gates["block4/3x3"].qz_loga.detach())
    is_open, branch = z > 0, "blocks.block4.branches.3x3.1"
    before, after = (n.get_submodule(f"{branch}.0") for n in (net, small))
    torch.testing.assert_close(after.weight, before.weight[is_open])
    torch.testing.assert_close(after.bias, before.bias[is_open])
    before, after = (n.get_submodule(f"{branch}.1") for n in (net, small))
    torch.testing.assert_close(after.weight, before.weight[is_open] * z[is_open])
    torch.testing.assert_close(after.bias, before.bias[is_open] * z[is_open])
    torch.testing.assert_close(after.running_mean, before.running_mean[is_open])
    torch.testing.assert_close(after.running_var, before.running_var[is_open])


@pytest.mark.parametrize("act_fn_name", ["gelu", "tanh"])
def test_other_gates_go_into_the_layers_that_read_them(act_fn_name):
    net = googlenet(act_fn_name)
    small = compact(net)
    gates = [gate.qz_loga.detach() for gate in net.blocks["block8"].gates.values()]
    z = deterministic_gate(torch.cat(gates))
    expected = (net.head[2].weight * z)[:, z > 0]
    torch.testing.assert_close(small.get_submodule("head.2").weight, expected)
    is_open = deterministic_gate(gates[0]) > 0
    norm = "blocks.block8.branches.1x1.1"
    expected = net.get_submodule(norm).weight[is_open]
    torch.testing.assert_close(small.get_submodule(norm).weight, expected)


@pytest.mark.parametrize("act_fn_name", ["relu", "gelu"])
def test_cutting_twice_changes_nothing(act_fn_name):
    once, x = compact(googlenet(act_fn_name)), images(16)
    twice = compact(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(t, once.state_dict()[name]) for name, t in twice.state_dict().items())
    assert torch.equal(once(x), twice(x))


def test_without_gates_everything_is_there():
    net, x = googlenet(), images(16)
    dense = without_gates(net)
    assert parameters(dense) == 260_650
    for gate in gates_of(net):
        gate.qz_loga.data.fill_(OPEN)
    assert_same(net(x), dense(x))


def test_the_cut_network_trains_and_folds():
    net, x, labels = compact(googlenet()).float().train(), images(16).float(), torch.arange(4)
    mean = net.get_submodule("stem.1").running_mean.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not torch.equal(net.get_submodule("stem.1").running_mean, mean)
    net = net.double().eval()
    with torch.no_grad():
        assert_same(net(x.double()), fold(net)(x.double()))


def test_a_network_without_gates_is_left_whole():
    net = GoogleNet(without_using_gate=True)
    small = compact(net)
    assert small.state_dict().keys() == net.state_dict().keys() and parameters(small) == 260_650
    assert not isinstance(small, GoogleNet) and isinstance(small, nn.Module)
