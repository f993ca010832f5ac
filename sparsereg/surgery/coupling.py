"""Coupled gates: one for each channel of a residual stream, or group of a grouped convolution, that
no gate alone can remove, multiplied in at every layer that reads it.

All channels that only go together are one class: those that additions and multiplications join, and
those of a group. What reads a class are convolutions and linear layers, behind its gate; the
backward analysis then removes it from all that write it. (As the groups of DepGraph, Fang et al.
2023, arXiv 2301.12900.)

What a barrier makes or reads, a norm or attention, is there as a whole; but other layers need not
read all of it. There gates start anew: one for each channel that they read, and share.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.nodes import NO_GATE, Edge, How
from sparsereg.graph.operations import Kind

FREE, KEPT = -1, -2  # in place of a gate: none yet, and none can be


@dataclass
class Read:
    """A tensor before the layers that read it: the gate of each of its entries along `axis`, by the
    number of the layer and of the gate within it, (C, 2), -1 for none. `selects`: all of it stays,
    see `SharedGates`."""

    source: str
    readers: list[str]
    gates: Tensor
    axis: int
    selects: bool = False


@dataclass
class Coupling:
    """`widths`: gates of each layer that has new ones. `goes_with`: of every layer that writes a
    class, the layers whose gates remove its channels. `reads`: where gates are multiplied in.
    `inputs`: of the layers that read behind a barrier, those that share the gates of each first
    one, which count as its inputs'."""

    widths: dict[str, int] = field(default_factory=dict)
    goes_with: dict[str, list[str]] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    inputs: dict[str, list[str]] = field(default_factory=dict)


def couple(graph: ChannelGraph, may: Callable[[str], bool]) -> Coupling:
    """Gates for all classes that have none, and that nothing but layers reads.

    Args:
        graph: with the gates that remove their channels alone.
        may: may a layer of this name lose channels?
    """
    starts, classes = find_classes(graph)
    state = torch.full((int(classes.max()) + 1,), FREE)
    state[classes_of_kept(graph, starts, classes)] = KEPT
    found, gate_of = Coupling(), torch.full((len(state), 2), -1)
    layers = [n for n in graph.flow if graph.kinds[n] in (Kind.MIX, Kind.GROUPED)]
    for node in layers:
        if not may(node.target):
            state[classes[own(graph, starts, node)]] = KEPT
    read = torch.zeros(len(state), dtype=torch.bool)
    for node in layers:
        for edge in graph.flow[node].edges:
            if edge.how == How.OPEN:
                read[classes[own(graph, starts, edge.source)]] = True
    for node in layers:
        mine = classes[own(graph, starts, node)]
        new = mine[(state[mine] == FREE) & read[mine] & (gate_of[mine, 0] < 0)].unique()
        if len(new):
            gate_of[new] = torch.tensor([[len(found.widths), i] for i in range(len(new))])
            found.widths[node.target] = len(new)
        names = [*found.widths]
        used = gate_of[mine, 0].unique().tolist()
        if -1 not in used:
            found.goes_with[node.target] = [names[i] for i in used]
    found.reads = find_reads(graph, starts, classes, gate_of)
    return found


def own(graph: ChannelGraph, starts: dict[fx.Node, int], node: fx.Node) -> Tensor:
    """The numbers of the channels of a tensor, (C,)."""
    return torch.arange(starts[node], starts[node] + graph.flow[node].width)


def find_classes(graph: ChannelGraph) -> tuple[dict[fx.Node, int], Tensor]:
    """Where the channels of each tensor begin among all, and the class of each, (all,)."""
    starts, count = {}, 0
    for node, flow in graph.flow.items():
        starts[node] = count
        count += flow.width
    pairs = [torch.zeros(2, 0, dtype=torch.long)]
    for node, flow in graph.flow.items():
        for edge in flow.edges:
            pairs += joined(graph, starts, node, edge)
    return starts, components(count, torch.cat(pairs, dim=1))


def joined(
    graph: ChannelGraph, starts: dict[fx.Node, int], node: fx.Node, edge: Edge
) -> list[Tensor]:
    """Pairs of channels that go together, (2, pairs)."""
    mine, theirs = own(graph, starts, node), own(graph, starts, edge.source)
    if edge.how == How.SAME:
        there = edge.order >= 0
        return [torch.stack([mine[there], theirs[edge.order[there]]])]
    if edge.how == How.FEATURES:
        return [torch.stack([mine, theirs.repeat_interleave(len(mine) // len(theirs))])]
    if edge.how == How.GROUPS:
        groups = graph.module(node).groups
        parts = zip(mine.chunk(groups), theirs.chunk(groups), strict=True)
        members = [torch.cat(part) for part in parts]
        return [torch.stack([part, part[:1].expand_as(part)]) for part in members]
    return []


def components(count: int, pairs: Tensor) -> Tensor:
    """The connected component of each of `count` numbers, named 0, 1, …, (count,)."""
    label = torch.arange(count)
    while True:
        lowest = torch.minimum(label[pairs[0]], label[pairs[1]])
        new = label.clone()
        for side in pairs:
            new.scatter_reduce_(0, label[side], lowest, "amin")
        while not torch.equal(new, new[new]):
            new = new[new]
        if torch.equal(new, label):
            return label.unique(return_inverse=True)[1]
        label = new


def classes_of_kept(graph: ChannelGraph, starts: dict[fx.Node, int], classes: Tensor) -> Tensor:
    """Classes that have gates already, or that something reads as it is."""
    found, used = [torch.zeros(0, dtype=torch.long)], used_nodes(graph)
    for node in used:
        flow = graph.flow[node]
        if graph.kinds[node] in (Kind.INPUT, Kind.GATE) or flow.axis is None:
            found.append(classes[own(graph, starts, node)])
        for edge in flow.edges:
            if edge.how == How.ALL:
                found.append(classes[own(graph, starts, edge.source)])
    for node in graph.traced.graph.find_nodes(op="output"):
        found.append(classes[own(graph, starts, node.args[0])])
    return torch.cat(found).unique()


def used_nodes(graph: ChannelGraph) -> set[fx.Node]:
    """What the output depends on; not, say, the first steps of what is one selection."""
    used = {out.args[0] for out in graph.traced.graph.find_nodes(op="output")}
    for node in reversed(graph.flow):
        if node in used:
            used |= {edge.source for edge in graph.flow[node].edges}
    return used


def find_reads(
    graph: ChannelGraph, starts: dict[fx.Node, int], classes: Tensor, gate_of: Tensor
) -> list[Read]:
    """The tensors that layers read, with the gates of their channels."""
    readers: dict[fx.Node, list[str]] = {}
    for node, flow in graph.flow.items():
        for edge in flow.edges:
            if graph.kinds[node] == Kind.MIX and edge.how == How.OPEN:
                readers.setdefault(edge.source, []).append(node.name)
    reads = []
    for source, names in readers.items():
        flow = graph.flow[source]
        gates = gate_of[classes[own(graph, starts, source)]]
        if (gates >= 0).any() and (flow.gates == NO_GATE).any():
            entries = gates.repeat_interleave(flow.repeat, dim=0)
            reads.append(Read(source.name, names, entries, flow.axis))
    return reads


def start_anew(graph: ChannelGraph, may: Callable[[str], bool], found: Coupling) -> None:
    """Add gates for what layers read of tensors that barriers make, or read, whole.

    Args:
        graph: with all gates that remove channels of layers.
        may: may a layer of this name have gates on its inputs?
        found: gets them.
    """
    for (source, axis), layers in reads_of_wholes(graph).items():
        names = [layer.target for layer in layers]
        if not all(may(name) for name in names):
            continue
        width, gate = source.meta["value"].shape[axis], input_gate(names[0])
        numbers = torch.stack([torch.full((width,), len(found.widths)), torch.arange(width)], dim=1)
        found.widths[gate], found.inputs[names[0]] = width, names
        readers = [layer.name for layer in layers]
        found.reads.append(Read(source.name, readers, numbers, axis, selects=True))


def reads_of_wholes(graph: ChannelGraph) -> dict[tuple[fx.Node, int], list[fx.Node]]:
    """The layers that read a tensor of which all is there, though layers have made it, along which
    dimension."""
    used, learned = used_nodes(graph), made_by_layers(graph)
    starts, classes = find_classes(graph)
    edges = [edge for node in used for edge in graph.flow[node].edges if edge.how == How.ALL]
    whole = [classes[own(graph, starts, edge.source)] for edge in edges]
    is_whole = torch.isin(classes, torch.cat(whole)) if whole else torch.zeros_like(classes).bool()
    reads: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node in graph.flow:
        if graph.kinds[node] != Kind.MIX or node not in used:
            continue
        [edge] = graph.flow[node].edges
        flow, dims = graph.flow[edge.source], edge.source.meta["value"].dim()
        is_free = flow.repeat == 1 and (flow.gates == NO_GATE).all()
        if edge.source in learned and is_free and is_whole[own(graph, starts, edge.source)].all():
            axis = 1 if graph.flow[node].axis == 1 else dims - 1
            reads.setdefault((edge.source, axis), []).append(node)
    return reads


def made_by_layers(graph: ChannelGraph) -> set[fx.Node]:
    """The tensors that layers have made of the image."""
    images, learned = set(), set()
    for node, flow in graph.flow.items():
        sources = {edge.source for edge in flow.edges}
        if graph.kinds[node] == Kind.INPUT or images & sources:
            images.add(node)
        is_layer = graph.kinds[node] in (Kind.MIX, Kind.GROUPED)
        if (is_layer and node in images) or learned & sources:
            learned.add(node)
    return learned


def input_gate(layer: str) -> str:
    """Name of the gate layer of a layer's inputs."""
    return f"{layer}_inputs"
