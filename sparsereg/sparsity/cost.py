"""The expected cost of a gated network, differentiable in the probabilities that gates are open.

The paper's penalty counts gates (Louizos et al. 2018, arXiv 1712.01312, eq. 4). Here every tensor
of the cut network is counted as well. Gates are independent, so a convolution whose input channels
are there with probabilities p_i, its output channels with p_o, has k² · Σ p_i · Σ p_o weights in
expectation.
"""

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import pad_sequence

from sparsereg.graph.channels import ChannelGraph
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.recording.layers import plain_copy
from sparsereg.sparsity.groups import group_sizes
from sparsereg.sparsity.presence import NEVER, Presences, bottlenecks, branch_ends
from sparsereg.sparsity.prices import prices


class ExpectedCost(nn.Module):
    """E[channels], E[parameters] and E[multiply-adds] of the cut network, in shares of the dense;
    and the paper's own price: each gate counts the weights of its group, whatever the others do.

    Every layer is a few terms, one for each set of gates of which one has to be open for its output
    channels to be read (`presence`):

        E[term] = (weights of a pair · E[inputs] + weights of an output) · E[outputs] · P(read)

    Exact for independent gates, except where a network collapses because all gates of one of the
    `bottlenecks` are closed, a block's or a gated reduction's, or of the `branch_ends`, behind
    several gated layers: what is left of it still counts here. So the error is at most the
    probability of that.

    Args:
        net: a network with `L0Gate` layers; not changed.
        image_shape: (C, H, W) of an image, which the multiply-adds depend on.

    Raises:
        UserError: an operation through which channels cannot be followed.
    """

    def __init__(self, net: nn.Module, image_shape: tuple[int, int, int]):
        super().__init__()
        net = plain_copy(net).float().cpu()
        channels = ChannelGraph(net, torch.zeros(1, *image_shape))
        self.num_gates = sum(len(gate.qz_loga) for gate in gate_layers(net).values())
        presences = Presences(channels)
        found = [(node, row) for node in channels.kinds for row in terms(channels, presences, node)]
        rows = [row for _, row in found]
        self.term_layers = [node.target for node, _ in found]  # the name of each term's layer
        names = ("inputs", "outputs", "readers", "per_pair", "per_output")
        for name, column in zip(names, zip(*rows, strict=True), strict=True):
            self.register_buffer(name, torch.stack(column).float(), persistent=False)
        # pairs of weights whose two channels one gate closes
        twins = self.inputs * self.outputs * self.per_pair.any(dim=1, keepdim=True)
        self.has_twins = bool(twins[:, 1:].any())
        self.register_buffer("twins", twins, persistent=False)
        self.register_buffer("order", graph_order(net, channels), persistent=False)
        self.register_buffer("channel_gate", channels.channel_gate, persistent=False)
        self.selects_features = bool(channels.channel_gate.any())
        self.register_buffer("channel", channel_places(self), persistent=False)
        sizes = torch.zeros(self.num_gates)
        sizes[self.order[1:] - 1] = group_sizes(channels)[1:]
        self.register_buffer("group_sizes", sizes, persistent=False)
        groups = bottlenecks(channels)
        self.narrowest = min(map(len, groups), default=self.num_gates)
        self.register_buffer("bottlenecks", self.padded(groups), persistent=False)
        ends = self.padded(branch_ends(channels, presences))
        self.register_buffer("branch_ends", ends, persistent=False)
        self.dense = ExpectedCost.count(self, torch.ones(self.num_gates))
        shares = self.group_sizes / self.dense["weights"]
        self.register_buffer("group_shares", shares, persistent=False)

    def padded(self, groups: list[list[int]]) -> Tensor:
        """Sets of the graph's gates as a table, (groups, largest), filled up with their number."""
        rows = [self.order[torch.tensor(gates)] - 1 for gates in groups]
        rows.append(torch.empty(0, dtype=torch.long))  # pad_sequence wants one
        return pad_sequence(rows, batch_first=True, padding_value=self.num_gates)[:-1]

    def forward(self, prob_open: Tensor) -> dict[str, Tensor]:
        """`prob_open`: for each gate P(z ≠ 0), in the order of `gate_layers(net)`, (gates,).

        Returns the expected cost of each name in `choices.COSTS`, in [0, 1].
        """
        params, macs = self.totals(prob_open)
        return {
            "channels": prob_open.mean(),
            "params": params / self.dense["params"],
            "macs": macs / self.dense["macs"],
            # autocast would make @ a bfloat16 product
            "weights": (prob_open * self.group_shares).sum(),
        }

    def count(self, is_open: Tensor) -> dict[str, int]:
        """The cost of the network cut to these gates, (gates,), in numbers."""
        exact = copy.deepcopy(self).cpu().double()
        is_open = is_open.cpu().double()
        params, macs = exact.totals(is_open).round().tolist()
        weights = (is_open @ exact.group_sizes).item()
        counts = {"channels": is_open.sum().item(), "params": params, "macs": macs}
        return {name: int(n) for name, n in (counts | {"weights": weights}).items()}

    def blocked(self, is_open: Tensor) -> bool:
        """Is a bottleneck closed, or what ends a branch, and `count` no longer exact?"""
        padded = torch.cat([torch.minimum(is_open, is_open[self.channel]), is_open.new_zeros(1)])
        return not all(
            padded[groups].any(dim=1).all() for groups in (self.bottlenecks, self.branch_ends)
        )

    def sparsity(self, is_open: Tensor) -> dict[str, float]:
        """1 - cost / dense cost, for each of them."""
        return {name: 1 - n / self.dense[name] for name, n in self.count(is_open).items()}

    def dearest(self, qz_loga: Tensor, number: int) -> Tensor:
        """The `number` gates with the highest ln α of each bottleneck, and of their channels."""
        there = torch.minimum(qz_loga, qz_loga[self.channel])  # a feature is, if both are open
        return self.with_channels(highest(there, self.bottlenecks, number))

    def cheapest(self, name: str, number: int) -> Tensor:
        """The `number` gates of each bottleneck that cost least, and those of their channels."""
        with torch.enable_grad():
            half = torch.full((self.num_gates,), 0.5, device=self.order.device, requires_grad=True)
            [price] = torch.autograd.grad(self(half)[name], half)
        return self.with_channels(highest(-price, self.bottlenecks, number))

    def with_channels(self, gates: Tensor) -> Tensor:
        gates = gates.flatten()
        return torch.cat([gates, self.channel[gates]]) if self.selects_features else gates

    def highest_sparsity(self, name: str, min_open: int) -> float:
        """What is left to ask for, with so many open channels in each bottleneck."""
        return self.sparsity(self.smallest(name, min_open))[name]

    def smallest(self, name: str, min_open: int) -> Tensor:
        """The gates of the network that has no less than that, (gates,), 1 or 0."""
        is_open = torch.zeros(self.num_gates)
        is_open[self.cheapest(name, min_open).cpu()] = 1
        return is_open

    def totals(self, prob_open: Tensor) -> Tensor:
        """Expected parameters and multiply-adds, (2,)."""
        with torch.autocast(prob_open.device.type, enabled=False):
            inputs, outputs = self.widths(prob_open)
            pairs = inputs * outputs
            if self.has_twins:  # E[z · z] = E[z], of z in {0, 1}
                p = torch.cat([prob_open.new_ones(1), prob_open])[self.order]
                pairs = pairs + self.twins @ (p * (1 - p)) * self.prob_read(p)
            return pairs @ self.per_pair + outputs @ self.per_output

    def widths(self, prob_open: Tensor) -> tuple[Tensor, Tensor]:
        """The expected inputs and outputs of each term, (terms,) each."""
        with torch.autocast(prob_open.device.type, enabled=False):
            p = torch.cat([prob_open.new_ones(1), prob_open])[self.order]  # (1 + gates,)
            outputs = (self.outputs @ p) * self.prob_read(p)
            if self.selects_features:  # each is there with its channel only
                p = p * p[self.channel_gate]
            return self.inputs @ p, outputs

    def prob_read(self, p: Tensor) -> Tensor:
        """P(one of the readers is open) of each term, (terms,); `p` of all gates, (1 + gates,)."""
        below_1 = p.clamp(max=1 - torch.finfo(p.dtype).eps)  # for the logarithm
        return 1 - torch.exp(self.readers @ torch.log1p(-below_1))


def highest(values: Tensor, groups: Tensor, number: int) -> Tensor:
    """The places of the `number` highest values of each group, (groups, number).

    Args:
        values: one for each gate, (gates,).
        groups: gates, (groups, largest), filled up with the number of all gates.
    """
    number = min(number, groups.shape[1])
    table = torch.cat([values, values.new_full((1,), -torch.inf)])[groups]
    return groups.gather(1, table.topk(number, dim=1).indices)


def terms(channels: ChannelGraph, presences: Presences, node: fx.Node) -> list[tuple[Tensor, ...]]:
    """The terms of one layer: how often each gate opens an input, an output, and lets it be read,
    (1 + gates,) each, and (parameters, multiply-adds) of a pair of channels and of an output."""
    if node not in channels.flow:
        return []
    edges = channels.flow[node].edges
    before = presences.of[edges[0].source] if edges else torch.zeros(0)
    inputs = [presences.table[n].gate for n in before.tolist() if n != NEVER]
    per_pair, per_output = prices(channels, node, len(before))
    if not per_pair.any() and not per_output.any():
        return []
    outputs: dict[frozenset[int], list[int]] = {}  # gates of the channels with these readers
    for number in presences.of[node].tolist():
        if number != NEVER:
            gate, readers = presences.table[number]
            outputs.setdefault(readers, []).append(gate)
    size = len(channels.channel_gate)
    return [
        (*(times(gates, size) for gates in (inputs, own, list(readers))), per_pair, per_output)
        for readers, own in outputs.items()
    ]


def times(gates: list[int], size: int) -> Tensor:
    return torch.bincount(torch.tensor(gates, dtype=torch.long), minlength=size)


def graph_order(net: nn.Module, channels: ChannelGraph) -> Tensor:
    """Where each gate of the graph stands among those of `gate_layers(net)`, which count from 1;
    `NO_GATE` stands first."""
    names = {module: name for name, module in net.named_modules()}
    order = torch.zeros(1 + sum(map(len, channels.gates.values())), dtype=torch.long)
    first = 1
    for gate in gate_layers(net).values():
        for place, number in enumerate(channels.gates.get(names[gate], ()), start=first):
            order[number] = place
        first += len(gate.qz_loga)
    return order


def channel_places(cost: ExpectedCost) -> Tensor:
    """For each gate, in the order of `gate_layers`, that of the channel whose features it selects,
    or itself, (gates,)."""
    places = torch.arange(cost.num_gates)
    chosen = cost.channel_gate.nonzero().flatten()
    places[cost.order[chosen] - 1] = cost.order[cost.channel_gate[chosen]] - 1
    return places
