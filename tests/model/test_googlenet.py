"""The network: widths, gates, operations per step."""

import copy
from itertools import chain

import pytest
import torch
from networks import EVERYWHERE
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sparsereg.model import googlenet
from sparsereg.model.basic_l0_blocks import L0Gate, deterministic_gate, prob_nonzero
from sparsereg.model.googlenet import ACTIVATIONS, REDUCE, WIDTHS, GoogleNet
from sparsereg.model.layers import BatchNorm


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_numbers_of_the_dense_network():
    net = GoogleNet()
    gates = [m for m in net.modules() if isinstance(m, L0Gate)]
    assert len(gates) == 32 and sum(len(g.qz_loga) for g in gates) == 832
    assert [len(g.qz_loga) for g in gates] == [w for widths in WIDTHS for w in widths]
    assert list(net.gates.values()) == gates
    weights = [p for name, p in net.named_parameters() if "qz_loga" not in name]
    assert sum(p.numel() for p in weights) == 260_650


def test_without_gates_there_is_no_qz_loga():
    gated, ungated = GoogleNet(), GoogleNet(without_using_gate=True)
    keys = {key for key in gated.state_dict() if not key.endswith("qz_loga")}
    assert keys == ungated.state_dict().keys()
    assert len(gated.state_dict()) == len(keys) + 32


@pytest.mark.slow
@pytest.mark.parametrize("act_fn_name", ACTIVATIONS)
def test_each_activation_trains(act_fn_name):
    torch.manual_seed(0)
    net = GoogleNet(act_fn_name=act_fn_name, without_using_gate=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    x, labels = images(8), torch.arange(8)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("act_fn_name", ACTIVATIONS)
def test_initialisation_keeps_the_scale(act_fn_name):
    """Kaiming-normal: a convolution of unit-variance input has the variance gain²."""
    torch.manual_seed(0)
    net = GoogleNet(act_fn_name=act_fn_name)
    conv = net.blocks["block8"].branches["3x3"][1][0]
    gain = ACTIVATIONS[act_fn_name][1]
    expected = gain / (conv.in_channels * 9) ** 0.5
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)


def test_other_arguments_out_of_range():
    with pytest.raises(ValueError, match="relu, leakyrelu, gelu, tanh"):
        GoogleNet(act_fn_name="swish")
    with pytest.raises(ValueError, match="droprate_init"):
        GoogleNet(droprate_init=1.0)


def test_gates_multiply_each_branch():
    torch.manual_seed(0)
    net = GoogleNet().eval()
    for gate in net.gates.values():
        gate.qz_loga.data.normal_(0, 3)
    block = net.blocks["block3"]
    x = torch.randn(2, 96, 8, 8)
    pairs = zip(block.branches.values(), block.gates.values(), strict=True)
    outputs = [branch(x) * deterministic_gate(g.qz_loga)[:, None, None] for branch, g in pairs]
    torch.testing.assert_close(block(x), torch.cat(outputs, dim=1))


@pytest.mark.parametrize("act_fn_name", ACTIVATIONS)
@pytest.mark.parametrize("gates", [{}, EVERYWHERE])
def test_training_multiplies_as_eval_does(monkeypatch, gates, act_fn_name):
    """In eval mode each branch has its gate, in training a block has one product, after its
    pooling: the same numbers and gradients."""
    monkeypatch.setattr(
        googlenet, "draw_gates", lambda qz_loga, n, _: deterministic_gate(qz_loga).expand(n, -1)
    )
    torch.manual_seed(0)
    net = GoogleNet(**gates, act_fn_name=act_fn_name).double().eval()
    for gate in net.gates.values():
        gate.qz_loga.data.normal_(0, 3)
    net.gates["block2/3x3"].qz_loga.data.fill_(-10)  # before a pooling
    x = images().double()
    results = {}
    for net.training in (False, True):  # of the network alone: BatchNorm stays in eval mode
        net.zero_grad()
        logits = net(x)
        logits.square().sum().backward()
        results[net.training] = [logits, *(p.grad for p in net.parameters())]
    for ours, expected in zip(results[True], results[False], strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("training", [True, False])
def test_branches_are_normalised_in_one(training):
    """Outputs, gradients and running statistics of a block are those of its branches one by one."""
    torch.manual_seed(0)
    block = GoogleNet(without_using_gate=True).blocks["block2"].double()
    for norm in block.modules():
        if isinstance(norm, BatchNorm):
            norm.weight.data.uniform_(0.5, 2)
            norm.bias.data.normal_()
    one_by_one = copy.deepcopy(block)
    x = torch.randn(4, 64, 8, 8, dtype=torch.float64)
    for _ in range(2):
        outputs = block(x)
        expected = torch.cat([branch(x) for branch in one_by_one.branches.values()], dim=1)
        torch.testing.assert_close(outputs, expected)
        block.train(training), one_by_one.train(training)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), theirs in zip(block.named_parameters(), one_by_one.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    torch.testing.assert_close(block.state_dict(), one_by_one.state_dict())


def test_gates_on_the_reductions():
    """They come after the outputs' gates of each block, and close what their reduction makes."""
    torch.manual_seed(0)
    net = GoogleNet(gate_reductions=True, droprate_init=0.01).eval()
    assert list(net.gates)[3:7] == [
        *("block1/max", "block1/reduce3x3", "block1/reduce5x5", "block2/1x1")
    ]
    assert len(net.qz_loga()) == 832 + sum(map(sum, REDUCE)) == 1248
    net.gates["block2/reduce5x5"].qz_loga.data[:4] = -10
    closed = net(images())
    reduction = net.blocks["block2"].branches["5x5"][0]
    reduction[1].bias.data[:4] = 7
    assert torch.equal(net(images()), closed)
    reduction[1].bias.data[4:] = 7
    assert not torch.equal(net(images()), closed)
    ungated = GoogleNet(without_using_gate=True).state_dict()
    assert {k for k in net.state_dict() if not k.endswith("qz_loga")} == ungated.keys()


def test_gates_on_the_stem():
    """They come first, and close what the stem makes."""
    torch.manual_seed(0)
    net = GoogleNet(gate_stem=True, droprate_init=0.01).eval()
    assert list(net.gates)[:2] == ["stem/3x3", "block1/1x1"] and len(net.qz_loga()) == 832 + 64
    net.gates["stem/3x3"].qz_loga.data[:60] = -10
    closed = net(images())
    net.stem[1].bias.data[:60] = 7
    assert torch.equal(net(images()), closed)
    net.stem[1].bias.data[60:] = 7
    assert not torch.equal(net(images()), closed)
    assert not GoogleNet(gate_stem=True, without_using_gate=True).gates


def test_closed_gates_cut_the_branch_off():
    torch.manual_seed(0)
    net = GoogleNet(droprate_init=0.01).eval()
    before = net(images())
    net.gates["block2/3x3"].qz_loga.data.fill_(-10)
    closed = net(images())
    assert not torch.equal(before, closed)
    for parameter in net.blocks["block2"].branches["3x3"].parameters():
        parameter.data.fill_(7)
    assert torch.equal(net(images()), closed)


@pytest.mark.parametrize("gates", [{}, {"gate_reductions": True}, EVERYWHERE])
def test_gradient_reaches_every_gate_and_weight(gates):
    torch.manual_seed(0)
    net = GoogleNet(**gates)
    net(images()).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
    for name, gate in net.gates.items():
        assert gate.qz_loga.grad.abs().sum() > 0, name


def test_training_draws_and_eval_does_not():
    torch.manual_seed(0)
    net = GoogleNet()
    # BatchNorm would mix the images of the batch: compare the gates themselves
    masks = torch.cat(list(chain(*net.draw_all_gates(images(), net.qz_loga()))), dim=1)
    assert masks.shape == (4, 832) and len(masks.unique(dim=0)) == 4
    per_batch = GoogleNet(sampling="per_batch")
    drawn = per_batch.draw_all_gates(images(), per_batch.qz_loga())
    masks = torch.cat(list(chain(*drawn)), dim=1)
    assert masks.shape == (1, 832)
    net.eval()
    assert torch.equal(net(images()), net(images()))


@pytest.mark.parametrize("droprate_init, l_c0", [(0.5, 0.8318), (0.05, 0.9895)])
def test_initial_l_c0(droprate_init, l_c0):
    torch.manual_seed(0)
    net = GoogleNet(droprate_init=droprate_init)
    assert prob_nonzero(net.qz_loga()).mean().item() == pytest.approx(l_c0, abs=5e-4)


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += not func.is_view
        return func(*args, **(kwargs or {}))


def operations_of_a_step(**arguments) -> int:
    net = GoogleNet(**arguments).to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    with CountOperations() as count:
        qz_loga = net.qz_loga()
        loss = F.cross_entropy(net(x, qz_loga), torch.arange(4))
        if qz_loga is not None:
            loss = loss + 0.5 * prob_nonzero(qz_loga).mean()
        loss.backward()
    return count.operations


def test_operations_of_a_training_step():
    assert operations_of_a_step(without_using_gate=True) <= 335
    assert operations_of_a_step() <= 400
    assert operations_of_a_step(sampling="per_batch") <= 400
