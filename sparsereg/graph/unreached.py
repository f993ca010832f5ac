"""Layers that no image reaches: their output is a constant, which is added, or multiplied, to what
else is there. So ends the inside of a residual block whose gates are all closed."""

from torch import Tensor, fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.operations import POOLS, Kind

Constants = dict[fx.Node, tuple[int, Tensor]]  # addition or …: which side is constant, (C,)


class Collapsed(UserError):
    """Every channel that some layer reads is closed, and its output is needed."""


def find_constants(channels: ChannelGraph, present: dict[fx.Node, Tensor]) -> Constants:
    """The additions and multiplications with one side that no image reaches.

    Raises:
        Collapsed: something else reads such a constant.
    """
    constants: Constants = {}
    for node, kind in channels.kinds.items():
        if kind == Kind.MIX and present[node].any():
            [source] = channels.sources(node)
            if not present[source].any():
                *chain, reader = way_to_reader(channels, node) or [None]
                if reader is None or reader in constants:
                    raise collapsed(channels, node)
                side = reader.args.index(chain[-1])
                remaining = present[reader].nonzero().flatten()
                constants[reader] = (side, value_of(channels, chain)[remaining])
    return constants


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
        if channels.kinds[reader] in (Kind.ADD, Kind.MUL) and reader.args[0] is not reader.args[1]:
            return [*way, reader]
        if not keeps_constants(channels, reader):
            break
        way.append(reader)
    return None


def value_of(channels: ChannelGraph, chain: list[fx.Node]) -> Tensor:
    """What comes out at the end when the first of these layers reads zeros, (C,)."""
    module = channels.module(chain[0])
    value = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias
    value = value.detach().view(1, -1, *[1] * (module.weight.dim() - 2))
    for node in chain[1:]:
        value = run(channels, node, value)
    return value.flatten()


def keeps_constants(channels: ChannelGraph, node: fx.Node) -> bool:
    """Does it make a constant of a constant, everywhere alike?"""
    module, kind = channels.module(node), channels.kinds[node]
    if isinstance(module, nn.Conv2d):
        return (
            kind in (Kind.MIX, Kind.AFFINE)
            and module.kernel_size == (1, 1)
            and module.padding == (0, 0)
        )
    name = type(module).__name__ if module is not None else str(node.target)
    return kind in (Kind.SCALE, Kind.ZERO, Kind.CONSTANT, Kind.AFFINE, Kind.GATE) and not (
        name in POOLS or "pool" in name
    )


def run(channels: ChannelGraph, node: fx.Node, value: Tensor) -> Tensor:
    if node.op == "call_module":
        return channels.module(node)(value)
    arguments = [value if isinstance(argument, fx.Node) else argument for argument in node.args]
    return node.target(*arguments, **node.kwargs)
