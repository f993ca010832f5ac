"""The expected time of a gated network on this machine, differentiable beside its other costs.

Each layer's milliseconds are measured over a grid of widths (`clock`), and interpolated at the
widths that are expected. Whole networks take longer than the sum, by what lies between the layers:
a share of it and a constant, from the dense network and one of half its width.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsereg.budgets.clock import Clock, Shape
from sparsereg.compact import compact
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import polarise

VECTOR = 16  # the most channels that a processor takes at once
STEPS = (  # widths that are measured, where layers are wide enough
    *(*range(8, 129, 8), *range(160, 513, 32)),
    *(640, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288),
)


class ExpectedLatency(ExpectedCost):
    """`ExpectedCost`, and E[milliseconds] under "latency", in shares of the dense network's.

    More channels never take less time, as some could be zeros: where noise says so, the table keeps
    the longer time. Processors compute whole vectors of channels. So the time of a cut network is
    taken at the next width of the grid; and the expected time, which would have no slope within a
    vector, is linear from one multiple of `VECTOR` to the next.

    Args:
        net: a network with `L0Gate` layers; not changed.
        image_shape: (C, H, W) of an image.
        clock: that measures.
    """

    def __init__(self, net: nn.Module, image_shape: Sequence[int], clock: Clock):
        super().__init__(net, tuple(image_shape))
        self.clock, self.image_shape = clock, tuple(image_shape)
        modules = {name: net.get_submodule(name) for name in dict.fromkeys(self.term_layers)}
        modules = {n: m for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear)}
        numbers = {name: number for number, name in enumerate(modules)}
        layers = [numbers.get(name, len(modules)) for name in self.term_layers]
        self.register_buffer("layers", torch.tensor(layers), persistent=False)  # of each term
        sizes = input_sizes(net, list(modules), self.image_shape)
        kinds = [Shape.of(module, sizes[name]) for name, module in modules.items()]
        grid, table, slope = self.measure(kinds, list(modules.values()))
        self.register_buffer("grid", grid, persistent=False)  # (widths,)
        self.register_buffer("table", table, persistent=False)  # (layers, widths, widths)
        self.register_buffer("slope", slope, persistent=False)  # the same without the steps
        self.share, self.constant = 1.0, 0.0
        self.calibrate(net)
        self.dense["latency"] = self.count(torch.ones(self.num_gates))["latency"]

    def measure(self, kinds: list[Shape], modules: list[nn.Module]) -> tuple[Tensor, ...]:
        """The grid of widths, and the milliseconds of each layer on it, with steps and without."""
        dense = [widths_of(module) for module in modules]
        largest = max(map(max, dense))
        grid = sorted({0, 1, *sum(dense, ()), *(n for n in STEPS if n < largest)})
        points = [
            {(i, o): (kind, i, o) for i in ins for o in outs}
            for kind, widths in zip(kinds, dense, strict=True)
            for ins, outs in [steps(kind, *widths)]
        ]
        times = self.clock.layers({point for own in points for point in own.values()})
        places = torch.tensor(grid, dtype=torch.float32)
        tables = []
        for own, widths in zip(points, dense, strict=True):
            measured = {at: times[point] for at, point in own.items()}
            ends = {at: ms for at, ms in measured.items() if ends_vectors(at, widths)}
            tables.append(torch.stack([fill(places, measured), fill(places, ends)]))
        return places, *torch.stack(tables, dim=1)

    def calibrate(self, net: nn.Module) -> None:
        """Fit what whole networks take to the sum over their layers."""
        widths = [len(gate.qz_loga) for gate in gate_layers(net).values()]
        half = torch.cat([torch.arange(width) % 2 == 0 for width in widths])
        opened = {"dense": torch.ones(self.num_gates, dtype=torch.bool), "half": half}
        measured = self.time({name: with_gates(net, gates) for name, gates in opened.items()})
        sums = {name: self.count(gates)["latency"] for name, gates in opened.items()}
        share = (measured["dense"] - measured["half"]) / (sums["dense"] - sums["half"])
        constant = measured["dense"] - share * sums["dense"]
        if share <= 0 or constant < 0:  # noise: all in proportion
            share, constant = measured["dense"] / sums["dense"], 0.0
        self.share, self.constant = share, constant

    def time(self, nets: dict[str, nn.Module]) -> dict[str, float]:
        """Milliseconds of networks, cut where their gates are closed."""
        cut = {name: compact(net) for name, net in nets.items()}
        return self.clock.networks(cut, self.image_shape)

    def forward(self, prob_open: Tensor) -> dict[str, Tensor]:
        with torch.autocast(prob_open.device.type, enabled=False):
            latency = self.milliseconds(prob_open) / self.dense["latency"]
        return super().forward(prob_open) | {"latency": latency}

    def count(self, is_open: Tensor) -> dict[str, float]:
        exact = self if self.grid.device.type == "cpu" else copy.deepcopy(self).cpu()
        with torch.no_grad():
            latency = exact.milliseconds(is_open.cpu().float(), whole=True).item()
        return super().count(is_open) | {"latency": latency}

    def milliseconds(self, prob_open: Tensor, whole: bool = False) -> Tensor:
        """E[milliseconds], (); `whole`: of a cut network."""
        inputs, outputs = self.widths(prob_open)  # (terms,)
        none = torch.zeros(len(self.table) + 1, device=inputs.device)  # the last: of BatchNorm
        widths_in = none.scatter(0, self.layers, inputs)[:-1]  # the same in all terms of a layer
        widths_out = none.index_add(0, self.layers, outputs)[:-1]
        if whole:
            widths_in, widths_out = map(self.next_width, (widths_in, widths_out))
        table = self.table if whole else self.slope
        hats = between(self.grid, widths_in), between(self.grid, widths_out)
        times = torch.einsum("li,lio,lo->l", hats[0], table, hats[1])
        return self.constant + self.share * times.sum()

    def next_width(self, widths: Tensor) -> Tensor:
        """Of the grid, (layers,)."""
        return self.grid[torch.searchsorted(self.grid, widths.round().contiguous())]


def steps(kind: Shape, c_in: int, c_out: int) -> tuple[list[int], list[int]]:
    """The input and output widths at which a layer is measured."""
    ins, outs = ([*(n for n in (1, *STEPS) if n < width), width] for width in (c_in, c_out))
    if kind.groups > 1:  # it stays whole, or goes
        return [c_in], [c_out]
    return ([c_in] if kind.groups == 0 else ins), outs


def ends_vectors(widths: tuple[int, int], dense: tuple[int, int]) -> bool:
    """Is each a whole number of vectors, or all there are?"""
    return all(n % VECTOR == 0 or n == most for n, most in zip(widths, dense, strict=True))


def fill(grid: Tensor, times: dict[tuple[int, int], float]) -> Tensor:
    """A layer's milliseconds at all widths of the grid, (widths, widths), from those measured; a
    layer with no input or no output is not there."""
    ins, outs = (sorted({widths[side] for widths in times}) for side in (0, 1))
    known = torch.tensor([[0.0, *(times[i, o] for o in outs)] for i in ins])
    known = torch.cat([torch.zeros(1, known.shape[1]), known])
    known = known.cummax(dim=0).values.cummax(dim=1).values
    rows, columns = (between(torch.tensor([0.0, *n]), grid) for n in (ins, outs))
    return rows @ known @ columns.T


def between(grid: Tensor, values: Tensor) -> Tensor:
    """The share that each width of the grid has in each value, (values, widths): linear between the
    two next to it."""
    above = torch.searchsorted(grid, values.detach().contiguous()).clamp(1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    share = ((values - low) / (high - low)).clamp(0, 1).unsqueeze(1)
    places = torch.arange(len(grid), device=grid.device)
    is_low, is_high = ((places == n.unsqueeze(1)).to(share) for n in (above - 1, above))
    return is_low * (1 - share) + is_high * share


def with_gates(net: nn.Module, is_open: Tensor) -> nn.Module:
    """A copy in which these gates are open, (gates,), and the others closed."""
    net = copy.deepcopy(net).eval()
    polarise(net, is_open)
    return net


def widths_of(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


@torch.no_grad()
def input_sizes(
    net: nn.Module, names: list[str], image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Height and width of what each layer reads; () for features."""
    net, sizes = copy.deepcopy(net).cpu().float().eval(), {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            sizes[name] = tuple(args[0].shape[2:])

        return hook

    for name in names:
        net.get_submodule(name).register_forward_pre_hook(keep(name))
    net(torch.zeros(1, *image_shape))
    return sizes
