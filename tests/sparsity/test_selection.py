"""The gates that stay open, and the network that is cut to them."""

import pytest
import torch

from sparsereg.compact import compact
from sparsereg.model.basic_l0_blocks import deterministic_gate, prob_nonzero
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import GUARDED, choose_open, polarise, reopen
from sparsereg.sparsity.size import count

IMAGE = (3, 32, 32)
DENSE = {"params": 260_650, "macs": 79_643_904}


@pytest.fixture(scope="module")
def cost() -> ExpectedCost:
    return ExpectedCost(GoogleNet(), IMAGE)


@pytest.fixture(scope="module")
def reductions_cost() -> ExpectedCost:
    return ExpectedCost(GoogleNet(gate_reductions=True), IMAGE)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("name", ["params", "macs", "channels"])
def test_chosen_gates_have_the_target(cost, name, target):
    for seed in range(3):
        qz_loga = torch.randn(832, generator=torch.Generator().manual_seed(seed))
        is_open = choose_open(qz_loga, cost, name, target, min_open=1)
        assert cost.sparsity(is_open)[name] == pytest.approx(target, abs=0.005)


@pytest.mark.parametrize("name, target", [("params", 0.99), ("macs", 0.97), ("params", 0.95)])
def test_the_last_percents_are_reached_too(cost, reductions_cost, name, target):
    """Where the most important gates are dear, the cheapest of each block stay instead."""
    for expected_cost in (cost, reductions_cost):
        qz_loga = torch.randn(expected_cost.num_gates, generator=torch.Generator().manual_seed(1))
        is_open = choose_open(qz_loga, expected_cost, name, target, min_open=1)
        assert expected_cost.sparsity(is_open)[name] == pytest.approx(target, abs=0.005)


@pytest.mark.parametrize("name", ["params", "macs"])
def test_chosen_gates_count_as_the_network_that_is_cut(cost, name):
    torch.manual_seed(0)
    net = GoogleNet()
    is_open = choose_open(torch.randn(832), cost, name, 0.6, min_open=1)
    polarise(net, is_open)
    assert 1 - count(compact(net), IMAGE)[name] / DENSE[name] == pytest.approx(0.6, abs=0.005)
    assert torch.equal(deterministic_gate(net.qz_loga()), is_open.float()), "exactly 0 or 1"
    expected = cost(prob_nonzero(net.qz_loga()))[name]
    assert expected.item() == pytest.approx(0.4, abs=0.006), "and hardly ever anything else"


def test_gates_close_in_their_order_except_the_guarded(cost):
    qz_loga = torch.linspace(-3, 3, 832)  # the first block closes first
    is_open = choose_open(qz_loga, cost, "channels", 0.5, min_open=4)
    still_open = [i for end in (64, 160, 256, 352) for i in range(end - 4, end)]
    assert is_open.nonzero().flatten().tolist() == [*still_open, *range(432, 832)]


def test_reopen_keeps_the_highest_gates_of_each_block(cost):
    net = GoogleNet()
    for gate in net.gates.values():
        gate.qz_loga.data.fill_(-9)
    net.gates["block3/5x5"].qz_loga.data[2] = -4
    net.gates["block4/1x1"].qz_loga.data[:3] = 1
    reopen(net, cost, 2)
    raised = {name: int((g.qz_loga >= GUARDED).sum()) for name, g in net.gates.items()}
    blocks = [
        sum(n for name, n in raised.items() if name.startswith(f"block{b}/")) for b in "12345678"
    ]
    assert blocks == [2, 2, 2, 3, 2, 2, 2, 2]
    assert net.gates["block3/5x5"].qz_loga[2] == GUARDED
    assert net.gates["block4/1x1"].qz_loga[:3].tolist() == [1, 1, 1]
    assert prob_nonzero(torch.tensor(GUARDED)).item() == pytest.approx(0.5, abs=1e-3)
