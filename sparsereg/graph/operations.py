"""What each operation of a traced network does to channels."""

import operator
from enum import StrEnum
from pkgutil import resolve_name

import torch
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from sparsereg.graph.nodes import module_of, refuse
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.layers import BatchNorm, ChannelScale, ChannelSelect, ChannelShift, MaxPool

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm)


class Kind(StrEnum):
    """What an operation does to channels. All but MIX, GROUPED, CAT, ADD, MUL, SELECT and FLATTEN
    keep every channel to itself."""

    INPUT, OUTPUT, SIZE = "input", "output", "size"
    MIX = "mix"  # every output channel depends on every input channel
    GROUPED = "grouped"  # a convolution that mixes within groups; it keeps all channels, or none
    SCALE = "scale"  # f(c·x) = c·f(x) for c > 0, and f(0) = 0
    ZERO = "zero"  # f(0) = 0
    CONSTANT = "constant"  # f(0) is a constant
    AFFINE = "affine"  # the same, with parameters for each channel
    MUL = "mul"  # of two tensors, channel by channel, as in squeeze-excitation
    SPLIT, SELECT = "split", "select"  # a tuple of parts; channels of the input in some order
    GATE, CAT, ADD, FLATTEN = "gate", "cat", "add", "flatten"
    UNFLATTEN = "unflatten"  # (N, C) to (N, C, 1, 1)


MODULES = {
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d), Kind.SCALE),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, ChannelScale), Kind.SCALE),
    **dict.fromkeys((nn.AdaptiveMaxPool2d, MaxPool, nn.ZeroPad2d, StochasticDepth), Kind.SCALE),
    **dict.fromkeys(
        (nn.GELU, nn.Tanh, nn.SiLU, nn.ELU, nn.ReLU6, nn.Hardswish, nn.Mish), Kind.ZERO
    ),
    **dict.fromkeys((nn.Sigmoid, nn.Hardsigmoid), Kind.CONSTANT),
    **dict.fromkeys((*BATCH_NORMS, ChannelShift), Kind.AFFINE),
    **dict.fromkeys((nn.ChannelShuffle, ChannelSelect), Kind.SELECT),
    nn.Flatten: Kind.FLATTEN,
    nn.Linear: Kind.MIX,
    nn.Conv2d: Kind.MIX,  # or AFFINE, if depthwise, or GROUPED
    L0Gate: Kind.GATE,
}
FUNCTIONS = {  # by name, because some of torch's functions do not know theirs
    **dict.fromkeys(("torch.relu", "torch.nn.functional.relu"), Kind.SCALE),
    **dict.fromkeys(
        ("torch.nn.functional.leaky_relu", "torch.nn.functional.max_pool2d"), Kind.SCALE
    ),
    **dict.fromkeys(("torch.nn.functional.dropout", "torch.nn.functional.dropout2d"), Kind.SCALE),
    "torch.nn.functional.avg_pool2d": Kind.SCALE,
    "torch.nn.functional.adaptive_avg_pool2d": Kind.SCALE,
    "torch.nn.functional.adaptive_max_pool2d": Kind.SCALE,
    **dict.fromkeys(("torch.nn.functional.gelu", "torch.nn.functional.silu"), Kind.ZERO),
    **dict.fromkeys(("torch.nn.functional.hardswish", "torch.nn.functional.relu6"), Kind.ZERO),
    "torch.nn.functional.elu": Kind.ZERO,
    "torch.tanh": Kind.ZERO,
    **dict.fromkeys(("torch.sigmoid", "torch.nn.functional.hardsigmoid"), Kind.CONSTANT),
    **dict.fromkeys(("_operator.add", "_operator.iadd", "torch.add"), Kind.ADD),
    **dict.fromkeys(("_operator.mul", "_operator.imul", "torch.mul"), Kind.MUL),
    **dict.fromkeys(("builtins.getattr", "_operator.getitem"), Kind.SIZE),
    "torch.chunk": Kind.SPLIT,
    "torch.channel_shuffle": Kind.SELECT,
    "torch.cat": Kind.CAT,
    "torch.flatten": Kind.FLATTEN,
    "torch.mean": Kind.FLATTEN,  # over positions; or SCALE, if these stay as 1x1
}
NAMES = {resolve_name(name): name for name in FUNCTIONS}
METHODS = {
    **dict.fromkeys(("relu", "contiguous"), Kind.SCALE),
    **dict.fromkeys(("flatten", "view", "reshape", "mean"), Kind.FLATTEN),
    **{"tanh": Kind.ZERO, "add": Kind.ADD, "add_": Kind.ADD, "size": Kind.SIZE},
    "chunk": Kind.SPLIT,
    **{"sigmoid": Kind.CONSTANT, "mul": Kind.MUL, "mul_": Kind.MUL},
}
POOLS = ("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "ZeroPad2d")


def kind_of(traced: fx.GraphModule, node: fx.Node) -> str:
    """One of the kinds above.

    Raises:
        UserError: names an operation that is none of them.
    """
    module = module_of(traced, node)
    kind = {
        "placeholder": Kind.INPUT,
        "output": Kind.OUTPUT,
        # exactly these types: a subclass may compute something else
        "call_module": MODULES.get(type(module)),
        "call_function": FUNCTIONS.get(NAMES.get(node.target)),
        "call_method": METHODS.get(node.target),
    }.get(node.op)
    if isinstance(module, nn.Conv2d) and kind and module.groups > 1:
        depthwise = module.groups == module.in_channels == module.out_channels
        kind = Kind.AFFINE if depthwise else Kind.GROUPED
    if node.target is operator.getitem and takes_part(node):
        kind = Kind.SELECT
    if kind == Kind.MUL and any(isinstance(a, int | float) and a > 0 for a in node.args):
        kind = Kind.SCALE
    if node.target in ("view", "reshape") and node.args[3:] == (1, 1):
        kind = Kind.UNFLATTEN
    if node.target in ("mean", torch.mean) and True in (*node.args[2:], node.kwargs.get("keepdim")):
        kind = Kind.SCALE
    if kind is None or not takes_channels(traced, node, kind):
        refuse(traced, node)
    return kind


def takes_channels(traced: fx.GraphModule, node: fx.Node, kind: str) -> bool:
    """Do the arguments make it the operation on channels that its name suggests?"""
    module, arguments = module_of(traced, node), [*node.args, *node.kwargs.values()]
    if kind == Kind.OUTPUT:
        return isinstance(node.args[0], fx.Node)
    if kind == Kind.SIZE:  # as in x.view(x.size(0), -1)
        return arguments[1:] in (["shape"], [], [0], [1])
    if kind == Kind.CAT:
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        if not isinstance(tensors, list | tuple):
            return False
        return (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")) == 1
    if kind in (Kind.ADD, Kind.MUL):
        return len(node.args) == 2 and all(isinstance(a, fx.Node) for a in arguments)
    if kind == Kind.SPLIT:
        return (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")) == 1
    if node.target in ("mean", torch.mean):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return {*dims} in ({2, 3}, {-1, -2}) if isinstance(dims, list | tuple) else False
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in ("view", "reshape"):
        return is_view_of_channels(node, kind)
    if kind == Kind.FLATTEN:
        return arguments[1:] == [1]
    return True


def is_view_of_channels(node: fx.Node, kind: str) -> bool:
    """x.view(x.size(0), -1), or x.view(x.size(0), x.size(1)), perhaps with (…, 1, 1)."""

    def is_size(argument: object, dimension: int) -> bool:
        if not isinstance(argument, fx.Node) or argument.args[1:] != (dimension,):
            return False
        return argument.target in ("size", operator.getitem)

    if kind == Kind.FLATTEN and node.args[2:] == (-1,):
        return True
    sizes = node.args[1:3] if kind == Kind.UNFLATTEN else node.args[1:]
    return len(sizes) == 2 and is_size(sizes[0], 0) and is_size(sizes[1], 1)


def takes_part(node: fx.Node) -> bool:
    """Is it one of the parts of a split, or `x[:, first:last]`?"""
    source, index = node.args
    if isinstance(index, int):
        return source.target in ("chunk", torch.chunk)
    if not isinstance(index, tuple) or [*map(type, index)] != [slice, slice]:
        return False
    bounds = index[1].start, index[1].stop, index[1].step
    return index[0] == slice(None) and not any(isinstance(b, fx.Node) for b in bounds)


def channel_order(traced: fx.GraphModule, node: fx.Node, width: int) -> Tensor:
    """Which of the `width` channels of its input each channel of a SELECT operation is, found by
    running it on their numbers."""
    if isinstance(module := module_of(traced, node), ChannelSelect):
        return module.order.cpu()
    numbers, source = torch.arange(width, dtype=torch.float32).view(1, width, 1, 1), node.args[0]
    if module is not None:
        return module(numbers).flatten().long()
    if source.target in ("chunk", torch.chunk):
        [how_many, *_] = *source.args[1:], *source.kwargs.values()
        return numbers.chunk(how_many, dim=1)[node.args[1]].flatten().long()
    return node.target(numbers, *node.args[1:], **node.kwargs).flatten().long()
