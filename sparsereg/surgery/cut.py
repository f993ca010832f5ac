"""The surgery on a traced network: gates go into weights, closed channels out of tensors."""

import torch
from torch import Tensor, fx, nn

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.nodes import NO_GATE, Flow, How
from sparsereg.graph.operations import Kind
from sparsereg.graph.readers import present as find_present
from sparsereg.graph.unreached import Collapsed, find_constants
from sparsereg.model.basic_l0_blocks import L0Gate, SharedGates
from sparsereg.model.layers import ChannelScale, ChannelSelect
from sparsereg.surgery.values import apply_gates, put_in

__all__ = ["Collapsed", "cut"]

Present = dict[fx.Node, Tensor]  # which channels of each tensor remain, (C,), 1 or 0
SIZED = ("view", "reshape", "expand")  # operations that are told the sizes of their result


def cut(
    channels: ChannelGraph, values: dict[str, Tensor], kept: dict[str, Tensor]
) -> fx.GraphModule:
    """Multiply gate values into the weights, and remove the channels whose gate is not kept; what
    is no longer read is still there, see `tidy`."""
    is_kept = torch.cat([torch.zeros(0, dtype=torch.bool), *(k.cpu() for k in kept.values())])
    while True:
        present = find_present(channels, is_kept.long())
        constants, starving = find_constants(channels, present)
        if not starving:
            break
        for layer in starving:
            [source] = channels.sources(layer)
            gates = channels.gate_of[source]
            is_kept[gates[gates > NO_GATE][0] - 1] = True  # zero, as its value is
    with torch.no_grad():
        apply_gates(channels, present, values)
        fix_sizes(channels)
        for node in reversed(channels.flow):  # readers first
            if present[node].any():
                narrow(channels, node, present)
        put_in(channels, constants)
    return channels.traced


def fix_sizes(channels: ChannelGraph) -> None:
    """The numbers of channels that the code asks for are those of the whole network."""
    for node, kind in channels.kinds.items():
        if kind == Kind.SIZE and node.target == "size" and node.args[0] in channels.flow:
            source, dim = node.args
            count = source.meta["value"].dim()
            if channels.flow[source].axis == dim % count:
                node.replace_all_uses_with(node.meta["value"])


def narrow(channels: ChannelGraph, node: fx.Node, present: Present) -> None:
    """Leave only the channels that are present, of one operation."""
    kind, module, flow = channels.kinds[node], channels.module(node), channels.flow[node]
    remaining = present[node].nonzero().flatten()
    if kind == Kind.CAT:
        narrow_cat(node, flow, present)
    elif kind == Kind.GATE:
        narrow_gate(channels, node, present)
    elif kind == Kind.MIX:
        narrow_layer(module, flow, present, remaining)
    elif kind == Kind.GROUPED:
        narrow_groups(channels, node, present)
    elif kind == Kind.MOVE:
        narrow_move(channels, node, present)
    elif kind == Kind.AFFINE or isinstance(module, ChannelScale):
        narrow_norm(module, remaining, flow.repeat)
    elif kind == Kind.CONSTANT_TENSOR and flow.axis is not None:
        owner, _, name = node.target.rpartition(".")
        take(channels.traced.get_submodule(owner), {name: flow.axis}, remaining)
    pick(channels, node, remaining)


def narrow_cat(node: fx.Node, flow: Flow, present: Present) -> None:
    """A part of which nothing remains is not joined."""
    if all(torch.equal(edge.order, torch.arange(flow.width)) for edge in flow.edges):
        return  # along another dimension
    tensors, *others = node.args or (node.kwargs["tensors"],)
    dim = others[0] if others else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    node.args, node.kwargs = ([t for t in tensors if present[t].any()], dim), {}
    if len(node.args[0]) == 1:
        node.replace_all_uses_with(node.args[0][0])


def narrow_gate(channels: ChannelGraph, node: fx.Node, present: Present) -> None:
    module, [source] = channels.module(node), channels.sources(node)
    remaining = present[node].nonzero().flatten()
    if node in channels.positions:
        source = select_features(channels, node, source, present) or source
    if isinstance(module, L0Gate | SharedGates):
        pick(channels, node, remaining)
        [source] = node.args if node not in channels.positions else [source]
        node.replace_all_uses_with(source)
    else:  # it has become a ChannelScale
        node.args = (source,)
        narrow_norm(module, remaining, 1)


def narrow_layer(module: nn.Module, flow: Flow, present: Present, remaining: Tensor) -> None:
    """A convolution or linear layer."""
    [edge] = flow.edges
    inputs, outputs = (
        ("in_features", "out_features")
        if isinstance(module, nn.Linear)
        else ("in_channels", "out_channels")
    )
    if edge.how == How.OPEN:
        width = len(present[edge.source])
        positions = module.weight.shape[1] // width
        read = present[edge.source].repeat_interleave(positions).nonzero().flatten()
        take(module, {"weight": 1}, read)
        setattr(module, inputs, len(read))
    take(module, {"weight": 0, "bias": 0}, remaining)
    setattr(module, outputs, len(remaining))


def narrow_groups(channels: ChannelGraph, node: fx.Node, present: Present) -> None:
    module, [source] = channels.module(node), channels.sources(node)
    is_left = torch.stack([part.any() for part in present[node].chunk(module.groups)])
    take(module, {"weight": 0, "bias": 0}, present[node].nonzero().flatten())
    each = module.in_channels // module.groups
    read = is_left.repeat_interleave(each)
    if not torch.equal(read, present[source].bool()):
        node.args = (select(channels, node, source, read.nonzero().flatten(), present),)
    module.groups = int(is_left.sum())
    module.in_channels, module.out_channels = each * module.groups, len(module.weight)


def narrow_norm(module: nn.Module, remaining: Tensor, repeat: int) -> None:
    """BatchNorm, a depthwise convolution, a scale or shift of each channel."""
    at = remaining
    if repeat > 1:
        at = (remaining.view(-1, 1) * repeat + torch.arange(repeat)).flatten()
    names = ("weight", "bias", "running_mean", "running_var", "scale", "shift")
    take(module, dict.fromkeys(names, 0), at)
    for name in ("num_features", "in_channels", "out_channels", "groups"):
        if hasattr(module, name):
            setattr(module, name, len(at))


def narrow_move(channels: ChannelGraph, node: fx.Node, present: Present) -> None:
    move, flow, remaining = node.meta["move"], channels.flow[node], present[node].bool()
    [edge] = flow.edges
    if move.stays:
        if not remaining.all():
            resize(node, flow, int(remaining.sum()))
        return
    chosen = select(channels, node, edge.source, move.order[remaining], present)
    if move.others is not None:
        args, kwargs = move.others
        with channels.traced.graph.inserting_before(node):
            name = "getitem" if node.op == "call_function" else node.target
            chosen = channels.traced.graph.create_node(
                node.op, node.target, (chosen, *args[1:]), kwargs, f"{name}_rest"
            )
    node.replace_all_uses_with(chosen)


def resize(node: fx.Node, flow: Flow, width: int) -> None:
    """Tell an operation the new number of channels, if it was told one."""
    if getattr(node.target, "__name__", node.target) not in SIZED:
        return
    in_list = isinstance(node.args[1], list | tuple)
    sizes = [*node.args[1]] if in_list else [*node.args[1:]]
    if sizes[flow.axis] == -1:
        return
    others = sizes[: flow.axis] + sizes[flow.axis + 1 :]
    sizes[flow.axis] = width * flow.repeat if -1 in others else -1
    node.args = (node.args[0], sizes) if in_list else (node.args[0], *sizes)


def pick(channels: ChannelGraph, node: fx.Node, remaining: Tensor) -> None:
    """Of a tensor of which all is there, take the channels that go with the rest."""
    flow = channels.flow[node]
    for edge in flow.edges:
        if edge.pick and len(remaining) < flow.width:
            dims = edge.source.meta["value"].dim()
            axis = flow.axis - node.meta["value"].dim() + dims
            chosen = insert_select(channels, node, edge.source, remaining, axis)
            node.replace_input_with(edge.source, chosen)


def select(
    channels: ChannelGraph, node: fx.Node, source: fx.Node, order: Tensor, present: Present
) -> fx.Node:
    """The channels of `source` in this order, -1 for zeros, by their numbers in the whole."""
    flow = channels.flow[source]
    places = present[source].cumsum(0) - 1  # of the channels that remain
    order = torch.where(order < 0, -1, places[order.clamp(min=0)])
    if flow.repeat > 1:
        order = (order.view(-1, 1) * flow.repeat + torch.arange(flow.repeat)).flatten()
    return insert_select(channels, node, source, order, flow.axis)


def select_features(
    channels: ChannelGraph, node: fx.Node, source: fx.Node, present: Present
) -> fx.Node | None:
    """The features that remain; None if these are all of the remaining channels."""
    positions = channels.positions[node]
    there = present[source].repeat_interleave(positions)
    order = (there.cumsum(0) - 1)[present[node].bool()]
    if torch.equal(order, torch.arange(int(there.sum()))):
        return None
    return insert_select(channels, node, source, order, 1, positions)


def insert_select(
    channels: ChannelGraph,
    node: fx.Node,
    source: fx.Node,
    order: Tensor,
    axis: int,
    positions: int = 1,
) -> fx.Node:
    """A layer before `node` that picks channels of `source`."""
    traced = channels.traced
    device = next(traced.parameters()).device
    layer = ChannelSelect(len(order), positions, axis, bool((order < 0).any())).to(device)
    layer.order.copy_(order)
    name = f"select_{node.name}_{source.name}"
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
