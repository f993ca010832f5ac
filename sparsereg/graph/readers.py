"""Backward through a traced network: who reads a channel, and so what has to remain of it."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor, fx

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.nodes import NO_GATE, Edge, How
from sparsereg.graph.operations import Kind
from sparsereg.model.basic_l0_blocks import L0Gate

UNREAD = -1  # no gate, because nothing reads the channel anyway

Read = Callable[[Tensor, Tensor | None], Tensor]  # what a layer asks of channels with these gates
Either = Callable[[Tensor, Tensor], Tensor]  # what two readers ask together
# what is asked of a channel, given its gate, that of a feature, and what is asked of the feature
Lift = Callable[[Tensor, Tensor, Tensor], Tensor]


def present(graph: ChannelGraph, is_open: Tensor) -> dict[fx.Node, Tensor]:
    """Which channels of each tensor remain in the cut network, (C,), 1 or 0.

    Args:
        is_open: for each gate 1 or 0, shape (number of gates,), integers.
    """
    alive = torch.cat([is_open.new_ones(1), is_open])
    alive = torch.cat([alive * alive[graph.channel_gate], is_open.new_zeros(1)])  # ALWAYS_ZERO: -1

    def read(gates: Tensor, layer: Tensor | None) -> Tensor:
        return torch.ones_like(gates) if layer is None else alive[gates] * layer.any()

    def lift(channel: Tensor, own: Tensor, asked: Tensor) -> Tensor:
        return asked  # a feature that is there is never without its channel

    return settle(graph, read, torch.maximum, lift, always=1, never=0)


def removers(graph: ChannelGraph) -> dict[fx.Node, Tensor]:
    """For each node, the gate whose closing removes the channel, (C,); `NO_GATE` for none."""

    def read(gates: Tensor, layer: Tensor | None) -> Tensor:
        if layer is None:
            return torch.full_like(gates, NO_GATE)
        removed_by = layer[layer != UNREAD].unique()
        if len(removed_by) == 0:
            return torch.full_like(gates, UNREAD)
        if len(removed_by) == 1:  # the gate that removes all of the layer stops its reading
            return torch.where(gates == NO_GATE, removed_by, gates)
        return gates

    def lift(channel: Tensor, own: Tensor, asked: Tensor) -> Tensor:
        return torch.where(asked == own, channel, asked)

    found = settle(graph, read, same, lift, always=NO_GATE, never=UNREAD)
    return {node: gates.clamp(min=NO_GATE) for node, gates in found.items()}


def kept(graph: ChannelGraph, removed_by: dict[fx.Node, Tensor] | None = None) -> dict[str, str]:
    """Gate layers that cannot remove all their channels, and why; `removed_by`: its `removers`,
    where they are known."""
    found, removed_by = {}, removed_by or removers(graph)
    for node, kind in graph.kinds.items():
        if kind == Kind.GATE and isinstance(graph.module(node), L0Gate):
            own = graph.gate_of[node]
            lost = own[removed_by[node] != own].tolist()
            if lost:
                why = graph.notes.get(lost[0], "it is an input, or read without the gate too")
                found[node.target] = f"{len(lost)} of {len(own)} channels: {why}"
    return found


def same(a: Tensor, b: Tensor) -> Tensor:
    """The gate where both have the same, or only one is read, else none."""
    both = torch.where(a == b, a, NO_GATE)
    return torch.where(a == UNREAD, b, torch.where(b == UNREAD, a, both))


def settle(
    graph: ChannelGraph,
    read: Read,
    either: Either,
    lift: Lift,
    always: int,
    never: int,
    within: Either = lambda carried, asked: carried,
) -> dict[fx.Node, Tensor]:
    """What the readers of each channel ask of it.

    Args:
        read: what a layer, for which `Tensor` is asked, or the output, None, asks of channels.
        either: what two readers ask together.
        lift: what a gated feature of a flattened tensor asks of its channel.
        always: what is asked of the network's input, which nothing can cut.
        never: what is asked of a channel that nothing reads.
        within: what remains of channels that an operation takes along, given what it is asked for.
    """
    inputs = [node for node in graph.gate_of if graph.kinds[node] == Kind.INPUT]
    found = {node: torch.full_like(graph.gate_of[node], always) for node in inputs}
    while True:
        asked = backward(graph, read, either, lift, never, found)
        before, found = found, carry_on(graph, asked, either, never, within)
        if unchanged(found, asked) or unchanged(found, before):
            return found


def unchanged(found: dict[fx.Node, Tensor], before: dict[fx.Node, Tensor]) -> bool:
    return all(node in before and torch.equal(found[node], before[node]) for node in found)


def backward(
    graph: ChannelGraph,
    read: Read,
    either: Either,
    lift: Lift,
    never: int,
    known: dict[fx.Node, Tensor],
) -> dict[fx.Node, Tensor]:
    requests: dict[fx.Node, list[Tensor]] = {node: [asked] for node, asked in known.items()}
    asked: dict[fx.Node, Tensor] = {}
    for node in graph.traced.graph.find_nodes(op="output"):
        [result] = node.args
        requests.setdefault(result, []).append(read(graph.gate_of[result], None))
    for node in reversed(graph.flow):
        found = requests.get(node, [torch.full_like(graph.gate_of[node], never)])
        asked[node] = reduce(either, found)
        if graph.kinds[node] == Kind.GROUPED:
            asked[node] = of_groups(asked[node], graph.module(node).groups, either)
        for edge in graph.flow[node].edges:
            mine = request(graph, node, edge, asked[node], read, either, lift, never)
            requests.setdefault(edge.source, []).append(mine)
    return asked


def request(
    graph: ChannelGraph,
    node: fx.Node,
    edge: Edge,
    asked: Tensor,
    read: Read,
    either: Either,
    lift: Lift,
    never: int,
) -> Tensor:
    """What an operation asks of a tensor that it reads."""
    gates = graph.gate_of[edge.source]
    if edge.how == How.OPEN:
        return read(gates, asked)
    if edge.how == How.ALL:
        return read(torch.zeros_like(gates), asked)
    if edge.how == How.GROUPS:  # zeros too: all of a group or none
        groups = graph.module(node).groups
        parts = zip(gates.chunk(groups), asked.chunk(groups), strict=True)
        return torch.cat([read(torch.zeros_like(own), layer) for own, layer in parts])
    if edge.how == How.FEATURES:
        channels = graph.channel_gate[graph.gate_of[node]]
        features = lift(channels, graph.gate_of[node], asked)
        return reduce(either, features.view(len(gates), -1).unbind(1))
    return onto(asked, edge.order, len(gates), either, never)


def onto(asked: Tensor, order: Tensor, width: int, either: Either, never: int) -> Tensor:
    """What is asked of each channel of a source, by those that come from it."""
    mine = order >= 0
    asked, order = asked[mine], order[mine]
    found = torch.full((width,), never)
    if width == 1:  # a whole
        return reduce(either, [found, *asked.unique().split(1)])
    found[order] = asked
    return found


def of_groups(asked: Tensor, groups: int, either: Either) -> Tensor:
    """A group that something is asked of is asked for as a whole."""
    parts = asked.chunk(groups)
    return torch.cat([reduce(either, p.unique().split(1)).expand_as(p) for p in parts])


def carry_on(
    graph: ChannelGraph,
    asked: dict[fx.Node, Tensor],
    either: Either,
    never: int,
    within: Either,
) -> dict[fx.Node, Tensor]:
    """What remains of a tensor, for whichever reader, all operations on it take along; but not
    those that select features."""
    found = dict(asked)
    for node, flow in graph.flow.items():
        edges = [edge for edge in flow.edges if edge.how == How.SAME]
        if edges and node not in graph.positions and (found[node] != never).any():
            parts = [of_source(found[edge.source], edge.order, never) for edge in edges]
            made = torch.stack([edge.order >= 0 for edge in edges]).any(dim=0)  # not zeros
            carried = within(reduce(either, parts), found[node])
            found[node] = torch.where(made, carried, found[node])
    return found


def of_source(found: Tensor, order: Tensor, never: int) -> Tensor:
    return torch.where(order >= 0, found[order.clamp(min=0)], never)
