"""Backward through a traced network: who reads a channel, and so what has to remain of it."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor, fx

from sparsereg.graph.channels import NO_GATE, ChannelGraph
from sparsereg.graph.nodes import refuse
from sparsereg.graph.operations import Kind

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
    alive = alive * alive[graph.channel_gate]

    def read(gates: Tensor, layer: Tensor | None) -> Tensor:
        return torch.ones_like(gates) if layer is None else alive[gates] * layer.any()

    def lift(channel: Tensor, own: Tensor, asked: Tensor) -> Tensor:
        return asked  # a feature that is there is never without its channel

    return settle(graph, read, torch.maximum, lift, always=1, never=0)


def removers(graph: ChannelGraph) -> dict[fx.Node, Tensor]:
    """For each node, the gate whose closing removes the channel, (C,); `NO_GATE` for none."""

    def read(gates: Tensor, layer: Tensor | None) -> Tensor:
        return torch.full_like(gates, NO_GATE) if layer is None else gates

    def lift(channel: Tensor, own: Tensor, asked: Tensor) -> Tensor:
        return torch.where(asked == own, channel, asked)

    found = settle(graph, read, same, lift, always=NO_GATE, never=UNREAD)
    return {node: gates.clamp(min=NO_GATE) for node, gates in found.items()}


def kept(graph: ChannelGraph) -> dict[str, str]:
    """Gate layers that cannot remove all their channels, and why."""
    found, removed_by = {}, removers(graph)
    for node, kind in graph.kinds.items():
        if kind == Kind.GATE:
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
    graph: ChannelGraph, read: Read, either: Either, lift: Lift, always: int, never: int
) -> dict[fx.Node, Tensor]:
    """What the readers of each channel ask of it.

    Args:
        read: what a layer, for which `Tensor` is asked, or the output, None, asks of channels.
        either: what two readers ask together.
        lift: what a gated feature of a flattened tensor asks of its channel.
        always: what is asked of the network's input, which nothing can cut.
        never: what is asked of a channel that nothing reads.
    """
    inputs = [node for node in graph.gate_of if graph.kinds[node] == Kind.INPUT]
    found = {node: torch.full_like(graph.gate_of[node], always) for node in inputs}
    while True:
        asked = backward(graph, read, either, lift, never, found)
        found = carry_on(graph, asked, either)
        if all(torch.equal(found[node], asked[node]) for node in found):
            return found


def backward(
    graph: ChannelGraph,
    read: Read,
    either: Either,
    lift: Lift,
    never: int,
    known: dict[fx.Node, Tensor],
) -> dict[fx.Node, Tensor]:
    asked: dict[fx.Node, Tensor] = {}
    for node in reversed(graph.gate_of):
        requests, gates = [known[node]] if node in known else [], graph.gate_of[node]
        for user in node.users:
            if graph.kinds[user] == Kind.OUTPUT:
                requests.append(read(gates, None))
            elif graph.kinds[user] == Kind.MIX:
                requests.append(read(gates, asked[user]))
            elif graph.kinds[user] == Kind.GROUPED:  # zeros too: all of a group or none
                requests.append(read(torch.zeros_like(gates), asked[user]))
            elif graph.kinds[user] == Kind.CAT:
                requests += parts(graph, user, node, asked[user])
            elif user in graph.positions:
                features = torch.full((len(gates) * graph.positions[user],), never)
                features[graph.order[user]] = asked[user]
                if graph.kinds[user] == Kind.GATE:
                    channels = graph.channel_gate[graph.gate_of[user]]
                    features = lift(channels, graph.gate_of[user], features)
                requests.append(reduce(either, features.view(len(gates), -1).unbind(1)))
            elif graph.kinds[user] == Kind.SELECT:
                requests.append(torch.full_like(gates, never))
                requests[-1][graph.order[user]] = asked[user]
            elif user in asked:
                requests.append(asked[user])
        if not requests:
            refuse(graph.traced, node, ": only its size is read")
        asked[node] = reduce(either, requests)
        if graph.kinds[node] == Kind.GROUPED:
            together = reduce(either, asked[node].unique().split(1))
            asked[node] = together.expand_as(asked[node]).clone()
    return asked


def parts(graph: ChannelGraph, cat: fx.Node, node: fx.Node, asked: Tensor) -> list[Tensor]:
    """What is asked of each occurrence of `node` in a concatenation."""
    sources = graph.sources(cat)
    pieces = asked.split([len(graph.gate_of[source]) for source in sources])
    return [piece for source, piece in zip(sources, pieces, strict=True) if source is node]


def carry_on(
    graph: ChannelGraph, asked: dict[fx.Node, Tensor], either: Either
) -> dict[fx.Node, Tensor]:
    """What remains of a tensor, for whichever reader, all operations on it take along; but not
    those that select features."""
    found = dict(asked)
    taking = [node for node in graph.gate_of if node not in graph.positions]
    for node in taking:
        kind = graph.kinds[node]
        if kind not in (Kind.INPUT, Kind.MIX, Kind.GROUPED) and found[node].any():
            sources = [found[source] for source in graph.sources(node)]
            if kind == Kind.SELECT:
                found[node] = sources[0][graph.order[node]]
            else:
                found[node] = torch.cat(sources) if kind == Kind.CAT else reduce(either, sources)
    return found
