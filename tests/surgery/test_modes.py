"""Networks of which a part does something else in training, or takes no part in it."""

import copy

import torch
from networks import CLOSED, assert_same, set_gates
from rare import Rare, conv, examples, insert
from torch import Tensor, nn
from torch.nn import functional as F

import sparsereg
from sparsereg.compact import compact, fold
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.size import count
from sparsereg.surgery.plain_graph import build, describe


class TwoResults(nn.Module):
    """Which does something else in training, and so is one operation there."""

    def __init__(self):
        super().__init__()
        self.e, self.f = conv(), conv()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.e(x))
        return (1.5 * y if self.training else y), F.relu(self.f(x))


def test_two_results_of_what_does_something_else_in_training():
    net = Rare(lambda n, x: n.g(torch.cat(n.two(x), 1)), two=TwoResults(), g=nn.Conv2d(16, 8, 3))
    gated = insert(net)
    cost = ExpectedCost(gated, (3, 9, 9))
    set_gates(gated, 0.5)
    is_open = torch.cat([gate.qz_loga for gate in gate_layers(gated).values()]) > CLOSED
    small, x = compact(gated), examples()
    assert_same(gated(x), small(x), 1e-9)
    predicted = cost.count(is_open)
    assert {name: predicted[name] for name in ("params", "macs")} == count(small, (3, 9, 9))


class Frozen(nn.Sequential):
    """A part that takes no part in training."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def test_what_is_frozen_stays_frozen_when_it_is_cut():
    torch.manual_seed(0)
    backbone = Frozen(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.RReLU(), nn.Dropout(0.5))
    head = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU())
    net = nn.Sequential(backbone, head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    gated = sparsereg.insert_gates(net, torch.zeros(1, 3, 9, 9), show=False)
    with torch.no_grad():
        for gate in gate_layers(gated).values():
            gate.qz_loga[:] = torch.tensor([-10.0, 10.0]).repeat(4)
    small = compact(gated)
    again = build(describe(small))  # as from a file
    again.load_state_dict(small.state_dict())
    x = torch.randn(8, 3, 9, 9) + 3
    for each in (small, again):
        each.train()
        before = copy.deepcopy(each.state_dict())
        with torch.no_grad():
            one, other = each(x), each(x)
        moved = {n for n, t in each.state_dict().items() if not torch.equal(t, before[n])}
        assert moved == {f"1.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
        assert torch.equal(one, other)  # no dropout
    assert_same(small.eval()(x), fold(small)(x), 1e-5)


class RunningMean(nn.Module):
    """Of the channels, as code keeps it that puts a new tensor in the place of a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, 8))
        self.last: list[tuple[Tensor, torch.Size]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last.append((x.detach(), x.shape))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return x - self.mean.view(1, -1, 1, 1)


def test_a_running_mean_that_is_put_in_place():
    part = RunningMean()
    gated, x = insert(Rare(lambda n, x: n.e(n.part(x)), e=conv(), part=part)), examples()
    before = gated.part.mean.clone()
    assert gated.part.last == []
    gated.train()(x)
    assert not torch.equal(gated.part.mean, before)
    set_gates(gated, 0.5)
    assert_same(gated.eval()(x), compact(gated)(x), 1e-9)
