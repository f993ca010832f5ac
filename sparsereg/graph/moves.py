"""Operations that put the elements of a tensor in other places: views, permutations, slices, parts.

Where the channels go is found by running the operation on a tensor of their numbers.
"""

import math
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsereg.graph.nodes import Flow

PADS = (F.pad,)


class Move(NamedTuple):
    """Where channels go.

    `order`: which one of the source each channel is, -1 for zeros, (C',). `stays`: the operation
    does the same with fewer channels; else they are chosen first, and `others` are its arguments
    for the rest that it does, if there is a rest.
    """

    order: Tensor
    axis: int
    repeat: int
    stays: bool
    others: tuple[tuple, dict] | None = None


def arguments(node: fx.Node) -> tuple[tuple, dict]:
    """Those of the example, in place of the nodes."""
    return fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])


def run(traced: fx.GraphModule, node: fx.Node, tensor: Tensor) -> Any:
    """The result of an operation for another first argument."""
    args, kwargs = arguments(node)
    if args:
        args = (tensor, *args[1:])
    else:
        name = next(iter(kwargs))
        kwargs = kwargs | {name: tensor}
    return call(traced, node, args, kwargs)


def call(traced: fx.GraphModule, node: fx.Node, args: tuple, kwargs: dict) -> Any:
    if node.op == "call_module":
        return traced.get_submodule(node.target)(*args, **kwargs)
    if node.op == "call_method":
        method = "reshape" if node.target == "view" else node.target
        return getattr(args[0], method)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def numbers(flow: Flow, shape: torch.Size) -> Tensor:
    """For each element the number of its channel; without copies of the other dimensions."""
    line = torch.arange(flow.width).repeat_interleave(flow.repeat)
    view = [1] * len(shape)
    view[flow.axis] = len(line)
    return line.view(view).expand(shape)


def moved(traced: fx.GraphModule, steps: list[fx.Node], flow: Flow, shape: torch.Size) -> Tensor:
    """The numbers behind some operations."""
    found = numbers(flow, shape)
    for step in steps:
        found = run(traced, step, found)
    return found


def find(found: Tensor) -> tuple[Tensor, int, int] | None:
    """(order, axis, repeat) of numbers that differ along one dimension alone."""
    once = [slice(1) if step == 0 else slice(None) for step in found.stride()]
    found = found[tuple(once)]  # of what `numbers` has expanded
    varying = [
        axis
        for axis, size in enumerate(found.shape)
        if size > 1 and (found != found.narrow(axis, 0, 1)).any()
    ]
    if len(varying) != 1:
        return None
    [axis] = varying
    index = [0] * found.dim()
    index[axis] = slice(None)
    line = found[tuple(index)]
    changes = (line[1:] != line[:-1]).nonzero().flatten() + 1
    repeat = math.gcd(*changes.tolist(), len(line))
    return line[::repeat], axis, repeat


def follow(
    traced: fx.GraphModule, steps: list[fx.Node], flow: Flow, shape: torch.Size
) -> Move | None:
    """Where the last of these operations has the channels of what the first one reads; None where
    that cannot be said, or done with fewer channels."""
    *before, last = steps
    if last.target in PADS:
        return None if before else padded(last, flow, shape)
    place = find(moved(traced, steps, flow, shape))
    if place is None:
        return None
    order, axis, repeat = place
    is_split = not before or (len(before) == 1 and last.target is operator.getitem)
    if is_split and not is_shuffle(traced, last) and torch.equal(order, torch.arange(flow.width)):
        return Move(order, axis, repeat, stays=True)
    if len(order.unique()) != len(order) or repeat != flow.repeat:
        return None
    return chosen(traced, steps, flow, shape, Move(order, axis, repeat, stays=False))


def is_shuffle(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Does it need a number of channels that can be divided?"""
    module = traced.get_submodule(node.target) if node.op == "call_module" else node.target
    return isinstance(module, nn.ChannelShuffle) or module is torch.channel_shuffle


def chosen(
    traced: fx.GraphModule, steps: list[fx.Node], flow: Flow, shape: torch.Size, move: Move
) -> Move | None:
    """Can the channels be chosen first, and then the rest of the operation done?"""
    elements = torch.arange(shape.numel()).view(shape)
    expected = elements
    for step in steps:
        expected = run(traced, step, expected)
    at = torch.arange(flow.width * flow.repeat).view(flow.width, flow.repeat)[move.order].flatten()
    first = elements.index_select(flow.axis, at)
    if move.axis == flow.axis and torch.equal(first, expected):
        return move
    others = without_choice(steps, flow.axis)
    if others is None:
        return None
    args = fx.node.map_arg(others[0], lambda n: n.meta["value"])
    rest = call(traced, steps[-1], (first, *args[1:]), others[1])
    return move._replace(others=others) if torch.equal(rest, expected) else None


def without_choice(steps: list[fx.Node], axis: int) -> tuple[tuple, dict] | None:
    """The arguments of `x[…]` with all channels."""
    [*before, last] = steps
    if before or last.target is not operator.getitem or not isinstance(last.args[1], tuple):
        return None
    index = list(last.args[1])
    if Ellipsis in index or None in index or axis >= len(index):
        return None
    index[axis] = slice(None)
    return (last.args[0], tuple(index)), {}


def padded(node: fx.Node, flow: Flow, shape: torch.Size) -> Move | None:
    """`F.pad` of positions, or of channels with zeros."""
    args, kwargs = arguments(node)
    own = [*(node.args[1] if len(args) > 1 else node.kwargs["pad"])]  # perhaps by the image's size
    pads = [*(args[1] if len(args) > 1 else kwargs["pad"])]
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    value = args[3] if len(args) > 3 else kwargs.get("value", 0)
    place = 2 * (len(shape) - 1 - flow.axis)
    before, after = pads[place : place + 2] or (0, 0)
    order = torch.arange(flow.width)
    zeros = mode == "constant" and value in (0, None)
    if (before, after) == (0, 0) and (zeros or mode != "constant"):
        return Move(order, flow.axis, flow.repeat, stays=True)
    fixed = not any(isinstance(n, fx.Node) for n in own[place : place + 2])
    if not zeros or min(before, after) < 0 or flow.repeat != 1 or not fixed:
        return None
    order = torch.cat([torch.full((before,), -1), order, torch.full((after,), -1)])
    own[place : place + 2] = [0, 0]
    return Move(order, flow.axis, 1, False, ((node.args[0], own), {}) if any(own) else None)
