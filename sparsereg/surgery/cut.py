"""The surgery on a traced network: gates go into weights, closed channels out of tensors."""

from itertools import accumulate

import torch
from torch import Tensor, fx, nn

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.operations import Kind
from sparsereg.graph.readers import present as find_present
from sparsereg.graph.unreached import Collapsed, Constants, find_constants
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.layers import ChannelScale, ChannelSelect, ChannelShift

__all__ = ["Collapsed", "cut"]

SIZES = {False: ("in_channels", "out_channels"), True: ("in_features", "out_features")}


def cut(
    channels: ChannelGraph, values: dict[str, Tensor], kept: dict[str, Tensor]
) -> fx.GraphModule:
    """Multiply gate values into the weights, and remove the channels whose gate is not kept."""
    is_kept = torch.cat([torch.zeros(0, dtype=torch.bool), *(k.cpu() for k in kept.values())])
    present = find_present(channels, is_kept.long())
    with torch.no_grad():
        constants = find_constants(channels, present)
        for node, kind in channels.kinds.items():
            if kind == Kind.GATE and present[node].any():
                apply_gate(channels, node, values[node.target])
        for node in present:
            if present[node].any():
                narrow(channels, node, present)
        put_in(channels, constants)
    traced = channels.traced
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def apply_gate(channels: ChannelGraph, gate: fx.Node, value: Tensor) -> None:
    """Let weights, or at last a `ChannelScale`, do what a gate of this value did."""
    if (producer := find_producer(channels, gate)) is not None:
        module = channels.module(producer)
        module.weight.mul_(value.view(-1, *[1] * (module.weight.dim() - 1)))
        if module.bias is not None:
            module.bias.mul_(value)
    elif (readers := find_readers(channels, gate)) is not None:
        for layer, first in readers:
            module = channels.module(layer)
            width = len(channels.gate_of[channels.sources(layer)[0]])
            weight = module.weight.unflatten(1, (width, -1))  # (out, C, positions, …)
            part = weight[:, first : first + len(value)]
            part.mul_(value.view(-1, *[1] * (part.dim() - 2)))
    else:
        scale = ChannelScale(len(value)).to(value)
        scale.scale.copy_(value)
        channels.traced.set_submodule(gate.target, scale)


def find_producer(channels: ChannelGraph, gate: fx.Node) -> fx.Node | None:
    """The BatchNorm, convolution or linear layer whose outputs can be scaled in place of `gate`:
    what lies between commutes with a positive factor, and nobody else reads it."""
    [node] = channels.sources(gate)
    while channels.kinds[node] == Kind.SCALE and len(node.users) == 1:
        [node] = channels.sources(node)
    is_layer = getattr(channels.module(node), "weight", None) is not None
    return node if is_layer and len(node.users) == 1 else None


def offsets(channels: ChannelGraph, user: fx.Node, node: fx.Node) -> list[int]:
    """Where the channels of `node` begin among those of its reader `user`."""
    sources = channels.sources(user)
    if channels.kinds[user] != Kind.CAT:
        return [0] * sources.count(node)
    starts = accumulate((len(channels.gate_of[source]) for source in sources), initial=0)
    return [start for source, start in zip(sources, starts, strict=False) if source is node]


def find_readers(
    channels: ChannelGraph, node: fx.Node, first: int = 0
) -> list[tuple[fx.Node, int]] | None:
    """Every layer that reads the channels of `node`, and at which of its inputs they begin; None
    if something reads them that does not commute with a positive factor."""
    found = []
    for user in node.users:
        if channels.kinds[user] == Kind.MIX:
            found.append((user, first))
            continue
        if channels.kinds[user] not in (Kind.SCALE, Kind.FLATTEN, Kind.CAT, Kind.MUL):
            return None
        for offset in offsets(channels, user, node):
            behind = find_readers(channels, user, first + offset)
            if behind is None:
                return None
            found += behind
    return found


def narrow(channels: ChannelGraph, node: fx.Node, present: dict[fx.Node, Tensor]) -> None:
    """Leave only the channels that are present, of one operation; a Kind.GROUPED one has all."""
    kind, module = channels.kinds[node], channels.module(node)
    remaining = present[node].nonzero().flatten()
    sources = channels.sources(node)
    if kind == Kind.CAT:
        node.args, node.kwargs = ([s for s in sources if present[s].any()], 1), {}
        if len(node.args[0]) == 1:
            node.replace_all_uses_with(node.args[0][0])
    elif kind == Kind.GATE and isinstance(module, L0Gate):
        selected = node in channels.positions and select(channels, node, present)
        node.replace_all_uses_with(selected or sources[0])
    elif kind == Kind.MIX:
        width = len(present[sources[0]])
        positions = module.in_features // width if isinstance(module, nn.Linear) else 1
        inputs = present[sources[0]].repeat_interleave(positions).nonzero().flatten()
        take(module, {"weight": 1}, inputs)
        take(module, {"weight": 0, "bias": 0}, remaining)
        for name, n in zip(SIZES[isinstance(module, nn.Linear)], (inputs, remaining), strict=True):
            setattr(module, name, len(n))
    elif kind == Kind.SELECT:
        node.replace_all_uses_with(select(channels, node, present) or sources[0])
    elif kind == Kind.AFFINE or isinstance(module, ChannelScale):
        if node in channels.positions:
            node.args = (select(channels, node, present) or sources[0],)
        if node in channels.flat:
            positions = module.num_features // len(present[node])
            remaining = present[node].repeat_interleave(positions).nonzero().flatten()
        names = ("weight", "bias", "running_mean", "running_var", "scale", "shift")
        take(module, dict.fromkeys(names, 0), remaining)
        for name in ("num_features", "in_channels", "out_channels", "groups"):
            if hasattr(module, name):
                setattr(module, name, len(remaining))


def select(channels: ChannelGraph, node: fx.Node, present: dict[fx.Node, Tensor]) -> fx.Node | None:
    """One layer that picks the remaining channels, or features, whatever the operation was; None if
    features remain all as they are."""
    traced, [source], positions = channels.traced, channels.sources(node), channels.positions
    remaining = present[source].repeat_interleave(positions.get(node, 1))
    places = remaining.cumsum(0) - 1  # of the channels that remain
    order = places[channels.order[node][present[node].bool()]]
    if node in positions and torch.equal(order, torch.arange(int(remaining.sum()))):
        return None
    device = next(traced.parameters()).device
    layer = ChannelSelect(len(order), positions.get(node, 1)).to(device)
    layer.order.copy_(order)
    if channels.kinds[source] == Kind.SPLIT:
        [source] = channels.sources(source)
    is_module = node.op == "call_module" and channels.kinds[node] == Kind.SELECT
    name = node.target if is_module else f"select_{node.name}"
    traced.add_submodule(name, layer)
    with traced.graph.inserting_before(node):
        return traced.graph.call_module(name, (source,))


def take(module: nn.Module, dimensions: dict[str, int], index: Tensor) -> None:
    """Of each tensor that the module has, the given entries of one dimension."""
    for name, dimension in dimensions.items():
        tensor = getattr(module, name, None)
        if tensor is None:
            continue
        part = tensor.index_select(dimension, index.to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            part = nn.Parameter(part, tensor.requires_grad)
        setattr(module, name, part)


def put_in(channels: ChannelGraph, constants: Constants) -> None:
    """One layer in place of each of these additions and multiplications."""
    traced = channels.traced
    for reader, (side, value) in constants.items():
        is_sum, name = channels.kinds[reader] == Kind.ADD, f"constant_{reader.name}"
        layer = (ChannelShift if is_sum else ChannelScale)(len(value)).to(value)
        (layer.shift if is_sum else layer.scale).copy_(value)
        traced.add_submodule(name, layer)
        with traced.graph.inserting_before(reader):
            reader.replace_all_uses_with(traced.graph.call_module(name, (reader.args[1 - side],)))
