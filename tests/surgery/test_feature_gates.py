"""Gates on the features of a flattened tensor: each goes by itself, and a filter with the last of
its own."""

import itertools

import pytest
import torch
from networks import Net, assert_same, gates_of, images, set_gates
from torch import Tensor, nn

from sparsereg.compact import compact, fold
from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.model.basic_l0_blocks import L0Gate, deterministic_gate
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import GUARDED, reopen
from sparsereg.sparsity.size import count
from sparsereg.surgery.plain_graph import build, describe

IMAGE = (3, 8, 8)


def lenet(filters: int = 5, act: type[nn.Module] = nn.LeakyReLU, filter_gates: bool = True) -> Net:
    """Two convolutions, and two linear layers with gates on their inputs; 4x4 positions."""
    layers = {
        **{"conv1": nn.Conv2d(3, 4, 3, padding=1), "gate1": L0Gate(4)},
        **{"conv2": nn.Conv2d(4, filters, 3, padding=1), "pool": nn.MaxPool2d(2), "act": act()},
        **{"gate2": L0Gate(filters) if filter_gates else nn.Identity(), "flatten": nn.Flatten()},
        **{"features": L0Gate(filters * 16), "fc1": nn.Linear(filters * 16, 7)},
        **{"hidden": L0Gate(7), "fc2": nn.Linear(7, 4)},
    }

    def compute(n: Net, x: Tensor) -> Tensor:
        x = n.gate2(n.act(n.pool(n.conv2(n.gate1(n.act(n.conv1(x)))))))
        return n.fc2(n.hidden(n.act(n.fc1(n.features(n.flatten(x))))))

    return Net(compute, **layers)


def read_twice(n: Net, x: Tensor) -> Tensor:
    y = n.flatten(n.gate2(n.act(n.pool(n.conv2(n.gate1(n.conv1(x)))))))
    return n.fc2(n.hidden(n.fc1(n.features(y)) + n.other(y)))


def behind_a_mean(n: Net, x: Tensor) -> Tensor:
    y = n.gate2(n.act(n.conv2(n.gate1(n.conv1(x))))).mean((2, 3))
    return n.fc2(n.hidden(n.short(n.few(y))))


def normalised(n: Net, x: Tensor) -> Tensor:
    y = n.flatten(n.gate2(n.act(n.pool(n.conv2(n.gate1(n.conv1(x)))))))
    return n.fc2(n.hidden(n.fc1(n.norm(n.features(y)))))


def with_layers(compute) -> Net:
    net = lenet()
    net.compute = compute
    more = {"other": nn.Linear(80, 7), "few": L0Gate(5), "short": nn.Linear(5, 7)}
    for name, layer in (more | {"norm": nn.BatchNorm1d(80)}).items():
        net.add_module(name, layer)
    return net


NETWORKS = {
    "lenet": lenet,
    "gelu": lambda: lenet(act=nn.GELU),
    "without gates on filters": lambda: lenet(filter_gates=False),
    "features read without the gate too": lambda: with_layers(read_twice),
    "behind a mean": lambda: with_layers(behind_a_mean),
    "BatchNorm behind the gate": lambda: with_layers(normalised),
    "pixels": lambda: nn.Sequential(
        *(nn.Flatten(), L0Gate(192), nn.Linear(192, 9), nn.ReLU(), L0Gate(9), nn.Linear(9, 4))
    ),
    "relu behind the gate": lambda: nn.Sequential(
        *(nn.Conv2d(3, 5, 3), L0Gate(5), nn.Flatten(), L0Gate(180), nn.ReLU(), nn.Linear(180, 4))
    ),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().double().eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cut_network_computes_the_same(name):
    net, x = make(name), images()
    for seed, share in enumerate((0.15, 0.3, 0.6, 1.0)):
        torch.manual_seed(seed)
        set_gates(net, share)
        with torch.no_grad():
            expected, cut = net(x), compact(net)
            assert_same(expected, cut(x), 1e-9)
            assert_same(expected, fold(cut)(x), 1e-9)
            assert_same(expected, compact(cut)(x), 1e-9)  # which has nothing left to lose
            rebuilt = build(describe(cut)).eval().double()
            rebuilt.load_state_dict(cut.state_dict())
            assert torch.equal(rebuilt(x), cut(x))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_what_remains(share):
    """By hand: a feature if its gate and its filter's are open; a filter if it has such a one."""
    torch.manual_seed(3)
    net = lenet()
    set_gates(net, share)
    open1, open2, features, hidden = (deterministic_gate(g.qz_loga) > 0 for g in gates_of(net))
    there = features.view(5, 16) & open2.view(5, 1)
    cut = compact(net)
    assert cut.conv1.out_channels == open1.sum()
    assert cut.conv2.out_channels == there.any(dim=1).sum()
    assert (cut.fc1.in_features, cut.fc1.out_features) == (there.sum(), hidden.sum())
    assert cut.fc2.in_features == hidden.sum()
    assert "features" not in dict(cut.named_modules())


def test_nothing_is_selected_where_all_features_remain():
    net = lenet()
    set_gates(net, 1.0)
    net.gate2.qz_loga.data[2] = -10
    assert not any("Select" in type(layer).__name__ for layer in compact(net).modules())


def test_a_network_with_a_selection_takes_new_gates():
    """As it is trained on after the cut: gates behind the selection of features."""
    torch.manual_seed(1)
    net, x = lenet().double().eval(), images()
    set_gates(net, 0.5)
    cut = compact(net)
    [select] = [m for m in cut.modules() if type(m).__name__ == "ChannelSelect"]
    width = len(select.order)
    again = nn.Sequential(
        *(cut.conv1, nn.ReLU(), cut.conv2, nn.ReLU(), nn.MaxPool2d(2)),
        *(L0Gate(cut.conv2.out_channels), nn.Flatten(), select, L0Gate(width), cut.fc1),
    )
    again.double().eval()
    set_gates(again, 0.4)
    with torch.no_grad():
        assert_same(again(x), compact(again)(x), 1e-9)


def test_a_third_gate_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), L0Gate(5), nn.Flatten(), L0Gate(180), L0Gate(180))
    net.append(nn.Linear(180, 4))
    with pytest.raises(UserError, match=r"4 .*a gate already"):
        ChannelGraph(net.eval())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "behind a mean"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_any_gates_cost_what_the_cut_network_has(name, share):
    torch.manual_seed(5)
    net = make(name).float()
    cost = ExpectedCost(net, IMAGE)
    for _ in range(3):
        is_open = torch.zeros(cost.num_gates)
        while cost.blocked(is_open > 0):
            set_gates(net, share)
            is_open = deterministic_gate(torch.cat([g.qz_loga.detach() for g in gates_of(net)]))
        found = cost.count(is_open > 0)
        assert {key: found[key] for key in ("params", "macs")} == count(compact(net), IMAGE)


def test_the_expected_parameters_by_enumeration():
    """All 2^13 patterns of a small network, whose size is counted by hand; filters count although
    the last gates, a bottleneck, be closed."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 2, 3), L0Gate(2), nn.AdaptiveMaxPool2d(2), nn.Flatten(), L0Gate(8)),
        *(nn.Linear(8, 3), nn.ReLU(), L0Gate(3), nn.Linear(3, 4)),
    )
    cost, p = ExpectedCost(net, IMAGE), torch.rand(13, dtype=torch.float64)
    total = 0.0
    for pattern in itertools.product([0, 1], repeat=13):
        z = torch.tensor(pattern)
        probability = torch.where(z == 1, p, 1 - p).prod().item()
        there = z[2:10].view(2, 4) * z[:2].view(2, 1)  # by filter
        filters, hidden = int(there.any(dim=1).sum()), int(z[10:].sum())
        fc1 = (int(there.sum()) + 1) * hidden
        total += probability * (filters * (27 + 1) + fc1 + 4 * hidden + 4)
    dense = 2 * 28 + 9 * 3 + 16
    assert cost.dense["params"] == dense
    assert cost.double()(p)["params"].item() * dense == pytest.approx(total, rel=1e-9)


def test_a_feature_is_kept_open_together_with_its_filter():
    net = lenet()
    cost = ExpectedCost(net, IMAGE)
    assert cost.narrowest == 4
    for gate in gates_of(net):
        gate.qz_loga.data.fill_(-9)
    net.gate2.qz_loga.data[3] = 1
    net.features.qz_loga.data[2] = 5  # of a filter that is closed
    net.features.qz_loga.data[3 * 16 + 7] = -3
    reopen(net, cost, 1)
    assert net.features.qz_loga[3 * 16 + 7].item() == pytest.approx(GUARDED)
    assert compact(net).fc1.in_features == 1
