"""Layers that no image reaches: their output is a constant, which is added, or multiplied, to what
else is there. So ends the inside of a residual block whose gates are all closed."""

import operator

import torch
from torch import Tensor, fx

from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.moves import call
from sparsereg.graph.nodes import How
from sparsereg.graph.operations import BATCH_NORMS, Kind, is_layer

SUBTRACTIONS = (operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract")
Constants = dict[fx.Node, tuple[int, Tensor]]  # addition or …: which side is constant, (C,)
PERMUTATIONS = ("permute", "transpose", "swapaxes", "movedim")


class Collapsed(UserError):
    """Every channel that some layer reads is closed, and its output is needed."""


def find_constants(
    channels: ChannelGraph, present: dict[fx.Node, Tensor]
) -> tuple[Constants, list[fx.Node]]:
    """The additions and multiplications with one side that no image reaches; and layers of which
    something else reads the constant: one channel has to stay for them, although it is zero.

    Raises:
        Collapsed: no image reaches the output.
    """
    constants: Constants = {}
    starving = [node for node in channels.flow if is_starving(channels, node, present)]
    if starving and not is_reached(channels, present):
        raise collapsed(channels, starving[0])
    left = []
    for node in starving:
        *chain, reader = way_to_reader(channels, node) or [None]
        if reader is None or reader in constants:
            left.append(node)
            continue
        side = reader.args.index(chain[-1])
        remaining = present[reader].nonzero().flatten()
        constants[reader] = (side, operand(reader, value_of(channels, chain)[remaining]))
    return constants, left


def is_starving(channels: ChannelGraph, node: fx.Node, present: dict[fx.Node, Tensor]) -> bool:
    """Does it read channels, none of which is there?"""
    if channels.kinds[node] != Kind.MIX or not present[node].any():
        return False
    return not any(present[edge.source].any() for edge in channels.flow[node].edges)


def is_reached(channels: ChannelGraph, present: dict[fx.Node, Tensor]) -> bool:
    """Does the output depend on the image?"""
    reached: set[fx.Node] = set()
    for node, flow in channels.flow.items():
        sources = [edge.source for edge in flow.edges]
        if present[node].any() and (
            channels.kinds[node] == Kind.INPUT or any(source in reached for source in sources)
        ):
            reached.add(node)
    return any(node in reached for out in outputs(channels) for node in out.args)


def outputs(channels: ChannelGraph) -> list[fx.Node]:
    return [node for node, kind in channels.kinds.items() if kind == Kind.OUTPUT]


def collapsed(channels: ChannelGraph, layer: fx.Node) -> Collapsed:
    [source] = channels.sources(layer)
    gates = [name for name in channels.gate_layers_of(channels.gate_of[source]) if name]
    return Collapsed(
        f"every channel that {layer.target} reads is closed (gates {', '.join(gates)}): the image "
        "no longer reaches it. Use an earlier checkpoint, or train with a lower lambda_l0"
    )


def way_to_reader(channels: ChannelGraph, layer: fx.Node) -> list[fx.Node] | None:
    """From `layer` to the addition or multiplication that alone reads it, over operations that keep
    a constant constant; None if something else does."""
    way = [layer]
    while len(way[-1].users) == 1:
        [reader] = way[-1].users
        if joins_two(channels, reader):
            return [*way, reader] if takes_constant(reader, way[-1]) else None
        if not keeps_constants(channels, reader):
            break
        way.append(reader)
    return None


def joins_two(channels: ChannelGraph, node: fx.Node) -> bool:
    """Is it a sum or product of two tensors with the same channels?"""
    if channels.kinds[node] not in (Kind.ADD, Kind.MUL) or len(node.args) != 2:
        return False
    if any(not isinstance(a, fx.Node) or a not in channels.flow for a in node.args):
        return False
    first, second = node.args
    alike = all(edge.how == How.SAME for edge in channels.flow[node].edges)
    return alike and first is not second and constant_operand(channels, node) is None


def takes_constant(node: fx.Node, constant: fx.Node) -> bool:
    """Is a shift or a scale all that this sum or product does to its other side? Not in c - x."""
    is_turned = node.target in SUBTRACTIONS and node.args[0] is constant
    return not is_turned and not node.kwargs


def operand(node: fx.Node, constant: Tensor) -> Tensor:
    """The shift or scale that it does with a constant."""
    return -constant if node.target in SUBTRACTIONS else constant


def constant_operand(channels: ChannelGraph, node: fx.Node) -> fx.Node | None:
    """The parameter by which it multiplies, or which it adds."""
    if channels.kinds[node] not in (Kind.ADD, Kind.MUL):
        return None
    for source in channels.sources(node):
        while channels.kinds[source] == Kind.MOVE and (before := channels.flow[source].edges):
            source = before[0].source
        if channels.kinds[source] == Kind.CONSTANT_TENSOR:
            return source
    return None


def value_of(channels: ChannelGraph, chain: list[fx.Node]) -> Tensor:
    """What comes out at the end when the first of these layers reads zeros, (C,)."""
    module, flow = channels.module(chain[0]), channels.flow[chain[0]]
    value = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias
    shape = [1] * chain[0].meta["value"].dim()
    shape[flow.axis] = -1
    value = value.detach().view(shape)
    for node in chain[1:]:
        value = run(channels, node, value)
    return value.flatten()


def keeps_constants(channels: ChannelGraph, node: fx.Node) -> bool:
    """Does it make a constant of a constant, everywhere alike?"""
    module, kind = channels.module(node), channels.kinds[node]
    if module is not None and is_layer(module):
        kernel = getattr(module, "kernel_size", (1,))
        padding = getattr(module, "padding", (0,))
        return kind in (Kind.MIX, Kind.AFFINE) and {*kernel} == {1} and {*padding} == {0}
    if isinstance(module, BATCH_NORMS) and module.running_mean is None:
        return False  # that of each batch
    if kind == Kind.MOVE:
        return getattr(node.target, "__name__", node.target) in PERMUTATIONS
    alone = len(channels.sources(node)) == 1
    kinds = (Kind.SCALE, Kind.ZERO, Kind.CONSTANT, Kind.AFFINE, Kind.GATE)
    return alone and (kind in kinds or (kind in (Kind.ADD, Kind.MUL) and has_number(node)))


def has_number(node: fx.Node) -> bool:
    return any(isinstance(a, int | float) for a in node.args)


def run(channels: ChannelGraph, node: fx.Node, value: Tensor) -> Tensor:
    """The operation on the value, in place of the tensor that it reads."""
    [source] = channels.sources(node)
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: value if n is source else n.meta["value"]
    )
    return call(channels.traced, node, args, kwargs)
