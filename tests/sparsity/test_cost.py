"""The expected cost against the network that is really cut."""

import json
from functools import cache
from itertools import chain, product
from pathlib import Path

import pytest
import torch
from networks import EVERYWHERE, gates_of
from small_networks import NETWORKS, make
from torch import Tensor, nn

from sparsereg.compact import Collapsed
from sparsereg.model import googlenet
from sparsereg.model.basic_l0_blocks import gate_layers, prob_nonzero
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.size import count
from sparsereg.surgery.compaction import cut_closed
from sparsereg.surgery.insert import place_gates

REFERENCE = json.loads((Path(__file__).parents[1] / "reference/compact_googlenet.json").read_text())
IMAGE = (3, 32, 32)


def open_these(net: torch.nn.Module, is_open: torch.Tensor) -> None:
    gates = [gate.qz_loga.data for gate in gate_layers(net).values()]
    for gate, part in zip(gates, is_open.split([len(gate) for gate in gates]), strict=True):
        gate.copy_(torch.where(part, 3.0, -9.0))


def size_when_cut(net: torch.nn.Module, is_open: torch.Tensor, image: tuple) -> dict[str, int]:
    open_these(net, is_open)
    return count(cut_closed(net, image_shape=image), image)


@cache
def cost_of_googlenet() -> ExpectedCost:
    return ExpectedCost(GoogleNet(), IMAGE)


@pytest.mark.parametrize("case", [REFERENCE["dense"], *REFERENCE["cases"]])
def test_certain_gates_cost_what_the_reference_says(case):
    cost = cost_of_googlenet()
    widths = zip(gates_of(GoogleNet()), chain(*case["open_channels"]), strict=True)
    is_open = torch.cat([torch.arange(len(gate.qz_loga)) < width for gate, width in widths])
    counted = {name: n for name, n in cost.count(is_open).items() if name != "weights"}
    assert counted == {
        "channels": int(is_open.sum()),
        "params": case["params"],
        "macs": case["macs"],
    }
    expected = cost(is_open.float())
    assert expected["params"].item() == pytest.approx(case["params"] / 260_650, rel=1e-5)
    assert expected["macs"].item() == pytest.approx(case["macs"] / 79_643_904, rel=1e-5)
    assert expected["channels"].item() == pytest.approx(is_open.sum().item() / 832)


@pytest.mark.parametrize("gates", [{}, EVERYWHERE])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_any_gates_cost_what_the_cut_network_has(gates, share):
    torch.manual_seed(0)
    net = GoogleNet(**gates)
    cost = ExpectedCost(net, IMAGE)
    is_open = torch.rand(cost.num_gates) < share
    is_open[cost.cheapest("params", 1)] = True  # no block is without any
    found = cost.count(is_open)
    assert not cost.blocked(is_open)
    assert size_when_cut(net, is_open, IMAGE) == {k: found[k] for k in ("params", "macs")}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks(name):
    net = make(NETWORKS[name]).float()
    cost = ExpectedCost(net, (3, 8, 8))
    compared = 0
    for seed in range(4):
        is_open = torch.rand(cost.num_gates, generator=torch.Generator().manual_seed(seed)) < 0.5
        try:
            size = size_when_cut(net, is_open, (3, 8, 8))
        except Collapsed:
            continue
        found = cost.count(is_open)
        # where the cost is an upper bound: see Presence; or a depthwise convolution of a residual
        # stream, which goes with the block behind it
        if name in ("gate after twice in a cat", "residual block"):
            assert all(size[k] <= found[k] <= cost.dense[k] for k in size), seed
        else:
            assert size == {k: found[k] for k in size}, seed
        compared += 1
    assert compared >= 3


@pytest.mark.slow
@pytest.mark.parametrize("gates", [{}, EVERYWHERE])
def test_expectation_is_the_mean_over_all_networks(monkeypatch, gates):
    """Five Bernoulli gates, of neighbouring channels in the first and the last layers: each of the
    32 networks cut, counted and weighted."""
    monkeypatch.setattr(googlenet, "WIDTHS", ((1, 2, 2, 1), (2, 1, 1, 2)))  # fast to cut
    monkeypatch.setattr(googlenet, "REDUCE", ((1, 2), (1, 1)))
    monkeypatch.setattr(googlenet, "STEM_CHANNELS", 3)
    torch.manual_seed(0)
    net = GoogleNet(**gates)
    cost = ExpectedCost(net, (3, 8, 8))
    certain = cost.bottlenecks[:, 0]  # else some of the networks would collapse
    others = [gate for gate in range(cost.num_gates) if gate not in certain]
    uncertain = others[:3] + others[-2:]
    prob_open = torch.ones(cost.num_gates)
    prob_open[uncertain] = torch.tensor([0.97, 0.05, 0.5, 0.3, 0.7])

    mean = torch.zeros(2, dtype=torch.float64)
    for choice in product([True, False], repeat=5):
        is_open = torch.ones(cost.num_gates, dtype=torch.bool)
        is_open[uncertain] = torch.tensor(choice)
        size = size_when_cut(net, is_open, (3, 8, 8))
        chance = torch.where(is_open, prob_open, 1 - prob_open).double().prod()
        mean += chance * torch.tensor(
            [size[name] / cost.dense[name] for name in ("params", "macs")]
        )
    expected = cost(prob_open)
    assert [expected["params"].item(), expected["macs"].item()] == pytest.approx(
        mean.tolist(), rel=1e-5
    )


def test_collapsed_networks_are_the_stated_error():
    """What feeds a closed block still counts: the error is at most the chance of such a block."""
    torch.manual_seed(0)
    net = GoogleNet()
    cost = ExpectedCost(net, IMAGE)
    is_open = torch.rand(832) < 0.5
    is_open[cost.bottlenecks[3][:96]] = False
    with pytest.raises(Collapsed):
        size_when_cut(net, is_open, IMAGE)
    assert cost.blocked(is_open)
    assert 0 < cost.count(is_open)["params"] < cost.dense["params"]


def test_channels_are_l_c0():
    torch.manual_seed(0)
    net = GoogleNet(droprate_init=0.3)
    prob_open = prob_nonzero(net.qz_loga())
    assert torch.equal(ExpectedCost(net, IMAGE)(prob_open)["channels"], prob_open.mean())


def test_gradient_is_that_of_finite_differences():
    net = make(NETWORKS["cats of cats"]).float()
    cost = ExpectedCost(net, (3, 8, 8)).double()
    prob_open = torch.rand(cost.num_gates, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: tuple(cost(p).values()), prob_open)


def test_an_open_gate_costs_what_its_channel_has():
    """With all gates open the gradient of one is what closing it saves."""
    net = GoogleNet()
    cost = ExpectedCost(net, IMAGE)
    everything = torch.ones(832, requires_grad=True)
    (cost(everything)["params"] * 260_650).backward()
    without = torch.ones(832)
    without[16] = 0  # the first 3x3 channel of block 1: 375 parameters (docs/method.md)
    assert everything.grad[16].item() == pytest.approx(375, rel=1e-3)
    assert 260_650 - cost.count(without)["params"] == 375


def test_bfloat16_autocast_leaves_the_cost_alone():
    cost = ExpectedCost(GoogleNet(), IMAGE)
    prob_open = torch.rand(832)
    exact = cost(prob_open)
    with torch.autocast("cpu", torch.bfloat16):
        cast = cost(prob_open)
    assert all(torch.equal(exact[name], cast[name]) for name in exact)


def test_the_network_is_left_alone():
    net = GoogleNet().double().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ExpectedCost(net, IMAGE)
    assert net.training and next(net.parameters()).dtype == torch.float64
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("gates", [{}, {"gate_reductions": True}, EVERYWHERE])
def test_highest_sparsity_is_that_of_the_smallest_network(gates):
    """One 1x1 channel in each block, by hand: stem, blocks, and a head that reads one channel."""
    cost = ExpectedCost(GoogleNet(**gates), IMAGE)
    width = 1 if "gate_stem" in gates else 64
    stem = width * (3 * 9 + 1 + 2)
    blocks = (width + 1 + 2) + 7 * (1 + 1 + 2)
    smallest = stem + blocks + 10 + 10
    assert cost.highest_sparsity("params", 1) == pytest.approx(1 - smallest / 260_650, abs=1e-9)
    assert cost.highest_sparsity("params", 8) < cost.highest_sparsity("params", 1)


class InGroups(nn.Module):
    """A branch of several layers that only the first group of a grouped convolution reads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.branch = nn.Sequential(
            *(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        )
        self.groups, self.fc = nn.Conv2d(12, 4, 3, groups=2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(self.groups(torch.cat([self.branch(x), x], 1)).mean((2, 3)))


def test_what_ends_a_branch_is_known():
    """The layers before closed gates count on; then the cut network itself is to be counted."""
    torch.manual_seed(0)
    net, _ = place_gates(InGroups(), coupled=True, example=torch.zeros(1, *IMAGE))
    cost, exact = ExpectedCost(net, IMAGE), []
    for _ in range(40):
        is_open = torch.rand(cost.num_gates) < 0.6
        found = cost.count(is_open)
        if not cost.blocked(is_open):
            exact.append(is_open)
            expected = size_when_cut(net, is_open, IMAGE)
            assert {name: found[name] for name in expected} == expected
    assert 5 < len(exact) < 40
