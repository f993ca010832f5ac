"""What one channel of a layer costs: parameters and multiply-adds, by its weights and shapes."""

from itertools import takewhile

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode  # torch has no public name for it
from torch.utils._pytree import tree_map_only

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.moves import call
from sparsereg.graph.operations import Kind, is_layer
from sparsereg.sparsity.macs import count_macs


def prices(channels: ChannelGraph, node: fx.Node, c_in: int) -> tuple[Tensor, Tensor]:
    """(parameters, multiply-adds) of a pair of an input and an output channel, and of an output."""
    kind, module, flow = channels.kinds[node], channels.module(node), channels.flow[node]
    nothing = torch.zeros(2)
    if node.op == "get_attr":
        return nothing, torch.tensor([parameter_size(channels, node) / flow.width, 0])
    if kind == Kind.BARRIER:
        return nothing, torch.tensor([own_size(channels, node), macs_of(channels, node)])
    if kind not in (Kind.MIX, Kind.GROUPED, Kind.AFFINE):
        return nothing, nothing
    tensors = dict(module.named_parameters())
    shape = node.meta["value"].shape
    positions = shape.numel() / (num_images(channels, node) * flow.width * flow.repeat)
    own = sum(p.numel() for name, p in tensors.items() if name != "weight") / flow.width
    weights = tensors["weight"].numel() if "weight" in tensors else 0
    if kind == Kind.MIX:
        pair = weights / (c_in * flow.width)
        return torch.tensor([pair, pair * positions]), torch.tensor([own, 0])
    # grouped: as many inputs as ever; or a BatchNorm, whose arithmetic is not counted
    alone = weights / flow.width
    counted = alone * positions if is_layer(module) else 0
    return nothing, torch.tensor([own + alone, counted])


def own_size(channels: ChannelGraph, node: fx.Node) -> int:
    """Parameters of a barrier; those that it shares are the first one's."""
    module = channels.module(node)
    own = set() if module is None else {*module.parameters()}
    if node.target in channels.shared:
        earlier = takewhile(lambda other: other is not node, channels.kinds)
        modules = (channels.module(other) for other in earlier if other.target in channels.shared)
        own -= {parameter for module in modules if module for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in own)


def parameter_size(channels: ChannelGraph, node: fx.Node) -> int:
    """Of a parameter in the graph, where it is used first; buffers are not counted, nor is the
    weight of a layer, which is that layer's, where code only asks for its type or device."""
    owner, _, name = node.target.rpartition(".")
    parameter = dict(channels.traced.get_submodule(owner).named_parameters()).get(name)
    is_first = next(n for n in channels.kinds if n.target == node.target) is node
    is_called = any(n.op == "call_module" and n.target == owner for n in channels.kinds)
    return parameter.numel() if parameter is not None and is_first and not is_called else 0


def macs_of(channels: ChannelGraph, node: fx.Node) -> int:
    """Multiply-adds of a barrier for one image, by its shapes."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        args, kwargs = tree_map_only(Tensor, like, arguments)
        macs = count_macs(lambda: call(channels.traced, node, args, kwargs))
    return macs // num_images(channels, node)


def num_images(channels: ChannelGraph, node: fx.Node) -> int:
    """In the example; 1 for what neither reads the images nor is made for each of them, as the
    embedding of a position."""
    [images] = channels.traced.graph.find_nodes(op="placeholder")
    seen, left = {node}, [node]
    while left and images not in seen:
        sources = {n for n in left.pop().all_input_nodes if has_numbers(n)} - seen
        seen |= sources
        left += sources
    number, value = len(images.meta["value"]), node.meta["value"]
    is_for_each = isinstance(value, Tensor) and value.shape[:1] == (number,)
    return number if images in seen or is_for_each else 1


def has_numbers(node: fx.Node) -> bool:
    """Is it a tensor, or several, not a shape?"""
    value = node.meta["value"]
    return isinstance(value, Tensor | tuple | list) and not isinstance(value, torch.Size)


def like(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype  # as the network's
    return torch.empty(tensor.shape, dtype=dtype)
