"""The values of gates go into weights, constants into layers of their own."""

import torch
from torch import Tensor, fx

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.nodes import How
from sparsereg.graph.operations import Kind
from sparsereg.graph.unreached import Constants
from sparsereg.model.basic_l0_blocks import SharedGates
from sparsereg.model.layers import ChannelScale, ChannelShift

MULTIPLYING = (Kind.SCALE, Kind.POOL)  # f(c·x) = c·f(x)
LAYERS = (Kind.MIX, Kind.GROUPED, Kind.AFFINE)


def apply_gates(
    channels: ChannelGraph, present: dict[fx.Node, Tensor], values: dict[str, Tensor]
) -> None:
    """Let weights, or at last a `ChannelScale`, do what gates with these values did."""
    for node, kind in channels.kinds.items():
        if kind == Kind.GATE and present[node].any():
            apply_gate(channels, node, value_of(channels, node, values))


def value_of(channels: ChannelGraph, node: fx.Node, values: dict[str, Tensor]) -> Tensor:
    """The value of the gate of each channel, (C,)."""
    module = channels.module(node)
    if not isinstance(module, SharedGates):
        return values[node.target]
    found = torch.cat([values[name] for name in module.gates])
    order = module.order[:: channels.flow[node].repeat]
    return torch.cat([found, found.new_ones(1)])[order]  # -1 is the last


def apply_gate(channels: ChannelGraph, gate: fx.Node, value: Tensor) -> None:
    if (producer := find_producer(channels, gate)) is not None:
        module = channels.module(producer)
        value = value.repeat_interleave(len(module.weight) // len(value))
        module.weight.mul_(value.view(-1, *[1] * (module.weight.dim() - 1)))
        if module.bias is not None:
            module.bias.mul_(value)
    elif (readers := find_readers(channels, gate)) is not None:
        for layer, first in readers:
            module, [edge] = channels.module(layer), channels.flow[layer].edges
            width = channels.flow[edge.source].width
            weight = module.weight.unflatten(1, (width, -1))  # (out, C, positions, …)
            part = weight[:, first : first + len(value)]
            part.mul_(value.view(-1, *[1] * (part.dim() - 2)))
    else:
        axis = channels.flow[gate].axis
        scale = ChannelScale(len(value), axis).to(value)
        scale.scale.copy_(value)
        channels.traced.set_submodule(gate.target, scale)


def find_producer(channels: ChannelGraph, gate: fx.Node) -> fx.Node | None:
    """The BatchNorm, convolution or linear layer whose outputs can be scaled in place of `gate`:
    what lies between commutes with a positive factor, and nobody else reads it."""
    [node] = channels.sources(gate)
    if gate in channels.positions:
        return None
    while channels.kinds[node] in MULTIPLYING and len(node.users) == 1:
        [node] = channels.sources(node)
    is_layer = channels.kinds[node] in LAYERS
    is_layer = is_layer and getattr(channels.module(node), "weight", None) is not None
    return node if is_layer and len(node.users) == 1 else None


def find_readers(
    channels: ChannelGraph, node: fx.Node, first: int = 0
) -> list[tuple[fx.Node, int]] | None:
    """Every layer that reads the channels of `node`, and at which of its inputs they begin; None
    if something reads them that does not commute with a positive factor."""
    found = []
    for user in node.users:
        kind, flow = channels.kinds[user], channels.flow.get(user)
        edges = [edge for edge in flow.edges if edge.source is node] if flow else []
        if kind == Kind.MIX and edges[0].how == How.OPEN:
            found.append((user, first))
            continue
        starts = [start(channels, user, edge.order) for edge in edges if edge.how == How.SAME]
        many = kind == Kind.MUL and len(edges) > 1
        if kind not in COMMUTING or len(starts) != len(edges) or not edges or many:
            return None
        for offset in starts:
            behind = None if offset is None else find_readers(channels, user, first + offset)
            if behind is None:
                return None
            found += behind
    return found


COMMUTING = (*MULTIPLYING, Kind.REDUCE, Kind.MOVE, Kind.CAT, Kind.MUL)


def start(channels: ChannelGraph, user: fx.Node, order: Tensor) -> int | None:
    """Where the channels begin among those of their reader, if they stay together; not of a
    concatenation along another dimension, whose other parts have no such factor."""
    own = (order >= 0).nonzero().flatten()
    if not torch.equal(order[own], torch.arange(len(own))) or len(own) == 0:
        return None
    if not torch.equal(own, torch.arange(int(own[0]), int(own[0]) + len(own))):
        return None
    is_joined = channels.kinds[user] == Kind.CAT and len(own) == len(order)
    return None if is_joined and len(channels.flow[user].edges) > 1 else int(own[0])


def put_in(channels: ChannelGraph, constants: Constants) -> None:
    """One layer in place of each of these additions and multiplications."""
    traced = channels.traced
    for reader, (side, value) in constants.items():
        is_sum, name = channels.kinds[reader] == Kind.ADD, f"constant_{reader.name}"
        axis = channels.flow[reader].axis
        layer = (ChannelShift if is_sum else ChannelScale)(len(value), axis).to(value)
        (layer.shift if is_sum else layer.scale).copy_(value)
        traced.add_submodule(name, layer)
        with traced.graph.inserting_before(reader):
            reader.replace_all_uses_with(traced.graph.call_module(name, (reader.args[1 - side],)))
