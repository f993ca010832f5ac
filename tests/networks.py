"""Small gated networks, gate patterns and the comparison for the tests of cutting and folding."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from sparsereg.graph.channels import NO_GATE, ChannelGraph
from sparsereg.graph.operations import BATCH_NORMS, Kind
from sparsereg.graph.readers import removers
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.googlenet import GoogleNet

CLOSED, OPEN = -10.0, 10.0  # ln α of a gate that is exactly 0, or 1
EVERYWHERE = {"gate_reductions": True, "gate_stem": True}  # of GoogleNet


class Net(nn.Module):
    """A network in a few lines: what forward computes, and the layers that it names."""

    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module):
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def conv(c_in: int, c_out: int, kernel_size: int = 3, act: type[nn.Module] = nn.LeakyReLU):
    """Convolution, BatchNorm, activation; the image keeps its size."""
    layer = nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), act())


def head(c_in: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 4))


def gates_of(net: nn.Module) -> list[L0Gate]:
    return [module for module in net.modules() if isinstance(module, L0Gate)]


def randomise(net: nn.Module) -> nn.Module:
    """Statistics, scales and shifts of every BatchNorm that are nobody's default."""
    for module in net.modules():
        if isinstance(module, BATCH_NORMS):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 1.5).mul_(torch.randn(module.weight.shape).sign())
                module.bias.data.uniform_(-0.5, 1.5)
    return net


def images(size: int = 8) -> Tensor:
    """Always the same four, differently bright, so that also what is pooled differs."""
    generator = torch.Generator().manual_seed(0)
    brightness = torch.tensor([0.5, 1, 2, 4], dtype=torch.float64).view(4, 1, 1, 1)
    noise = torch.rand(4, 3, size, size, dtype=torch.float64, generator=generator)
    return brightness * (noise - 0.3)


def set_gates(net: nn.Module, share: float) -> None:
    """Opens about this share of the gates, at least one of each layer, most of them partly."""
    for gate in gates_of(net):
        is_open = torch.rand(len(gate.qz_loga)) < share
        is_open[torch.randint(len(is_open), ())] = True
        partly = torch.empty(len(is_open)).uniform_(-1, 3)  # 0.2 to 1
        gate.qz_loga.data.copy_(torch.where(is_open, partly, torch.tensor(CLOSED)))


def googlenet(act_fn_name: str = "relu", share: float = 0.4) -> GoogleNet:
    """In float64, with BatchNorm statistics and about this share of the gates open."""
    torch.manual_seed(0)
    net = randomise(GoogleNet(act_fn_name=act_fn_name).double().eval())
    set_gates(net, share)
    return net


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def assert_same(expected: Tensor, actual: Tensor, tolerance: float = 1e-10) -> None:
    """The largest difference is at most `tolerance` of the largest value.

    Once more without what does not depend on the image: most of the logits of a cut network are one
    constant, beside which a wrong channel might pass unseen.
    """
    assert expected.shape == actual.shape and len(expected) > 1
    for a, b in ((expected, actual), (expected - expected.mean(0), actual - actual.mean(0))):
        assert a.abs().max() > 1e-5 * expected.abs().max(), "nothing to compare"
        error = ((a - b).abs().max() / a.abs().max()).item()
        assert error <= tolerance, f"{error:.1e} of the largest value"


@dataclass(frozen=True)
class Segment:
    """`width` neighbouring channels: of gates `start`, `start` + 1, … of the layer `gate`, or,
    where `gate` is None, channels that no single gate closes."""

    width: int
    gate: str | None = None
    start: int = 0


@dataclass(frozen=True)
class Layer:
    """Which gates multiply the inputs of a layer, and which remove its outputs when closed."""

    inputs: tuple[Segment, ...]
    outputs: tuple[Segment, ...]


def layers(graph: ChannelGraph) -> dict[str, Layer]:
    """The segments of each convolution, BatchNorm and linear layer, by module name."""
    removed_by = removers(graph)
    return {
        node.target: Layer(
            segments(graph, graph.gate_of[graph.sources(node)[0]]),
            segments(graph, removed_by[node]),
        )
        for node, kind in graph.kinds.items()
        if kind in (Kind.MIX, Kind.GROUPED, Kind.AFFINE)
    }


def segments(graph: ChannelGraph, gates: Tensor) -> tuple[Segment, ...]:
    """Neighbouring channels of one gate layer, or of none, together."""
    places = {NO_GATE: (None, 0)}
    for name, numbers in graph.gates.items():
        places |= {number: (name, i) for i, number in enumerate(numbers)}
    channels = [(*places[gate], c) for c, gate in enumerate(gates.tolist())]
    # gates that follow one another are as far from the number of their channel
    runs = groupby(channels, lambda place: (place[0], place[0] and place[1] - place[2]))
    runs = [(name, list(run)) for (name, _), run in runs]
    return tuple(Segment(len(run), name, run[0][1]) for name, run in runs)
