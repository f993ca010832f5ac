"""The table of operations: what each one does to channels. docs/operations.md says how to add one.

What is not in it is a BARRIER: its inputs keep all their channels, and behind it gates start anew.
"""

import operator
from enum import StrEnum
from pkgutil import resolve_name

import torch
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from sparsereg.graph.nodes import module_of
from sparsereg.model.basic_l0_blocks import L0Gate, SharedGates
from sparsereg.model.layers import (
    BatchNorm,
    ChannelScale,
    ChannelSelect,
    ChannelShift,
    FrozenBatchNorm,
    ImageShape,
    MaxPool,
    SameConv2d,
)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm, FrozenBatchNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Kind(StrEnum):
    """What an operation does to channels."""

    INPUT, OUTPUT = "input", "output"
    SIZE = "size"  # no tensor: a number, a shape
    MIX = "mix"  # every output channel depends on every input channel
    GROUPED = (
        "grouped"  # a convolution that mixes within groups; a group goes with all its channels
    )
    # Each channel of one tensor to itself:
    SCALE = "scale"  # f(c·x) = c·f(x) for c > 0, and f(0) = 0
    POOL = "pool"  # the same, of (N, C, …), over the positions
    REDUCE = "reduce"  # the same, over the dimensions that it is given
    ZERO = "zero"  # f(0) = 0
    CONSTANT = "constant"  # f(0) is a constant
    AFFINE = "affine"  # the same, with parameters for each channel
    # Of several tensors, channel by channel:
    ADD, MUL = "add", "mul"
    CAT = "cat"
    # Elements, unchanged, in another place:
    MOVE = "move"
    SPLIT = "split"  # a tuple of parts
    GATE = "gate"
    CONSTANT_TENSOR = "constant tensor"  # a parameter or buffer in the graph
    BARRIER = "barrier"  # all of it depends on all channels of all its inputs


def rows(kind: Kind, *names: object) -> dict:
    return dict.fromkeys(names, kind)


POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d),
    *(nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.LPPool1d, nn.LPPool2d, MaxPool),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.CircularPad1d, nn.CircularPad2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
)
MODULES = {  # exactly these types: a subclass may compute something else
    **rows(Kind.SCALE, nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    **rows(Kind.SCALE, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU),
    **rows(Kind.SCALE, StochasticDepth, ChannelScale, ImageShape),
    **rows(Kind.POOL, *POOLS),
    **rows(Kind.ZERO, nn.GELU, nn.Tanh, nn.SiLU, nn.ELU, nn.ReLU6, nn.Hardswish, nn.Mish, nn.SELU),
    **rows(Kind.ZERO, nn.CELU, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink),
    **rows(Kind.CONSTANT, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid),
    **rows(Kind.CONSTANT, nn.Hardtanh, nn.Threshold),
    **rows(Kind.AFFINE, *BATCH_NORMS, ChannelShift),
    **rows(Kind.MOVE, nn.Flatten, nn.ChannelShuffle, nn.PixelUnshuffle),
    **rows(Kind.MOVE, nn.PixelShuffle, nn.Unflatten, ChannelSelect),
    **rows(Kind.MIX, nn.Linear, *CONVOLUTIONS, SameConv2d),  # or AFFINE, if depthwise, or GROUPED
    **rows(Kind.GATE, L0Gate, SharedGates),
    **rows(Kind.BARRIER, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm),
    **rows(Kind.BARRIER, nn.PReLU, nn.ConvTranspose2d, nn.MultiheadAttention, nn.Softmax),
    **rows(Kind.BARRIER, nn.LogSoftmax, nn.Softmax2d, nn.Softmin, nn.Unfold, nn.Fold, nn.GLU),
    **rows(Kind.BARRIER, nn.InstanceNorm1d, nn.InstanceNorm3d, nn.RMSNorm, nn.ConstantPad2d),
    **rows(Kind.BARRIER, nn.ConvTranspose1d, nn.ConvTranspose3d, nn.CosineSimilarity, nn.Bilinear),
    **rows(Kind.BARRIER, nn.MaxUnpool2d),
}
F, T, OP = "torch.nn.functional.", "torch.", "_operator."


def named(prefix: str, kind: Kind, names: str) -> dict[str, Kind]:
    return {prefix + name: kind for name in names.split()}


FUNCTIONS = {  # by name, because some of torch's functions do not know theirs
    **named(F, Kind.SCALE, "relu leaky_relu dropout dropout1d dropout2d"),
    **named(T, Kind.SCALE, "relu abs neg clone"),
    **named(OP, Kind.SCALE, "neg abs pos"),
    **named(F, Kind.POOL, "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"),
    **named(F, Kind.POOL, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    **named(F, Kind.POOL, "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    **named(F, Kind.POOL, "interpolate lp_pool2d"),
    **named(T, Kind.REDUCE, "mean sum amax amin"),
    **named(F, Kind.ZERO, "gelu silu elu celu selu relu6 hardswish mish softsign tanh tanhshrink"),
    **named(F, Kind.ZERO, "hardshrink softshrink"),
    **named(T, Kind.ZERO, "tanh square sqrt sin atan expm1 log1p erf sign floor ceil round selu"),
    **named(F, Kind.CONSTANT, "hardsigmoid sigmoid softplus logsigmoid hardtanh threshold"),
    **named(T, Kind.CONSTANT, "sigmoid clamp clamp_min clamp_max clip exp cos"),
    **named(OP, Kind.ADD, "add iadd sub isub"),
    **named(T, Kind.ADD, "add sub subtract"),
    **named(OP, Kind.MUL, "mul imul truediv itruediv"),
    **named(T, Kind.MUL, "mul div multiply divide true_divide"),
    **named(T, Kind.CAT, "cat concat concatenate stack"),
    **named(T, Kind.SPLIT, "chunk split tensor_split unbind"),
    **named(T, Kind.MOVE, "flatten reshape permute transpose swapaxes squeeze unsqueeze movedim"),
    **named(T, Kind.MOVE, "channel_shuffle pixel_shuffle pixel_unshuffle narrow select roll flip"),
    **named(T, Kind.MOVE, "unflatten moveaxis swapdims tile ravel t"),
    **named(F, Kind.MOVE, "channel_shuffle pixel_shuffle pixel_unshuffle pad"),
    **named(OP, Kind.MOVE, "getitem"),
    "builtins.getattr": Kind.SIZE,
    # barriers that a file of a cut network may hold
    **named(F, Kind.BARRIER, "softmax layer_norm group_norm scaled_dot_product_attention linear"),
    **named(F, Kind.BARRIER, "conv1d conv2d conv3d normalize log_softmax unfold fold glu prelu"),
    **named(F, Kind.BARRIER, "batch_norm instance_norm local_response_norm rms_norm grid_sample"),
    **named(F, Kind.BARRIER, "affine_grid cosine_similarity softmin bilinear one_hot"),
    **named(F, Kind.BARRIER, "conv_transpose2d"),
    **named(T, Kind.BARRIER, "softmax matmul bmm baddbmm einsum pow var var_mean std rsqrt"),
    **named(T, Kind.BARRIER, "maximum minimum max min where log norm cumsum addcmul addcdiv"),
    **named(T, Kind.BARRIER, "repeat_interleave tril triu gather index_select outer logsumexp"),
    **named(T, Kind.BARRIER, "reciprocal zeros ones full arange linspace log_softmax mm addmm"),
    **named(T, Kind.BARRIER, "prod median topk sort argmax argmin argsort cumprod log2 log10 lerp"),
    **named(T, Kind.BARRIER, "masked_fill scatter logical_and logical_or logical_not std_mean"),
    **named(T, Kind.BARRIER, "diff tensordot cdist remainder fmod atan2 isnan nan_to_num"),
    **named(T, Kind.BARRIER, "logaddexp eq ne lt le gt ge zeros_like ones_like full_like eye"),
    **named(T, Kind.BARRIER, "slice_scatter select_scatter linalg.norm linalg.vector_norm"),
    **named(OP, Kind.BARRIER, "matmul floordiv mod pow invert and_ or_ eq ne lt le gt ge"),
}
METHODS = {
    **named("", Kind.SCALE, "relu relu_ abs neg clone float double half bfloat16 type_as"),
    **named("", Kind.SCALE, "to"),
    **named("", Kind.REDUCE, "mean sum amax amin"),
    **named("", Kind.ZERO, "tanh tanh_ square sqrt sin atan expm1 log1p erf sign floor ceil round"),
    **named("", Kind.CONSTANT, "sigmoid sigmoid_ clamp clamp_ clamp_min clamp_max clip exp cos"),
    **named("", Kind.ADD, "add add_ sub sub_ subtract"),
    **named("", Kind.MUL, "mul mul_ div div_ multiply divide true_divide"),
    **named("", Kind.SPLIT, "chunk split tensor_split unbind"),
    **named("", Kind.MOVE, "flatten view reshape permute transpose squeeze unsqueeze expand"),
    **named("", Kind.MOVE, "narrow select roll flip repeat movedim swapaxes contiguous unflatten"),
    **named("", Kind.MOVE, "moveaxis swapdims tile ravel t"),
    **named("", Kind.SIZE, "size"),
    **named("", Kind.BARRIER, "softmax matmul bmm pow var std rsqrt max min norm cumsum"),
    **named("", Kind.BARRIER, "masked_fill repeat_interleave log bool long int expand_as unfold"),
    **named("", Kind.BARRIER, "log_softmax logsumexp mm addmm baddbmm prod median topk sort"),
    **named("", Kind.BARRIER, "argmax argmin argsort cumprod log2 log10 reciprocal lerp gather"),
    **named("", Kind.BARRIER, "scatter index_select where maximum minimum tril triu addcmul"),
    **named("", Kind.BARRIER, "addcdiv outer diff remainder fmod isnan nan_to_num eq ne lt le gt"),
    **named("", Kind.BARRIER, "ge logical_and logical_or logical_not"),
}
NAMES: dict[object, str] = {}
for _name in FUNCTIONS:
    NAMES.setdefault(resolve_name(_name), _name)


def kind_of(traced: fx.GraphModule, node: fx.Node) -> Kind:
    """The row of the table that an operation has."""
    if node.op == "call_module":
        return kind_of_module(module_of(traced, node))
    if node.op in ("call_function", "call_method") and is_power(node):
        return Kind.ZERO
    if node.op == "call_function":
        return FUNCTIONS.get(NAMES.get(node.target), Kind.BARRIER)
    if node.op == "call_method":
        return METHODS.get(node.target, Kind.BARRIER)
    kinds = {"placeholder": Kind.INPUT, "output": Kind.OUTPUT, "get_attr": Kind.CONSTANT_TENSOR}
    return kinds[node.op]


def is_power(node: fx.Node) -> bool:
    """x ** n for a number n > 0, which is 0 where x is."""
    numbers = [a for a in node.args[1:] if isinstance(a, int | float)]
    return node.target in (pow, operator.pow, torch.pow, "pow") and numbers[:1] > [0]


def kind_of_module(module: nn.Module) -> Kind:
    kind = MODULES.get(type(module), Kind.BARRIER)
    if kind == Kind.BARRIER and is_layer(module):
        kind = Kind.MIX  # one that computes its weights, see `explicit`
    if kind == Kind.POOL and getattr(module, "return_indices", False):
        return Kind.BARRIER
    if kind == Kind.MIX and getattr(module, "groups", 1) > 1:
        depthwise = module.groups == module.in_channels == module.out_channels
        return Kind.AFFINE if depthwise else Kind.GROUPED
    return kind


def is_layer(module: nn.Module) -> bool:
    """Is it a convolution or linear layer, perhaps one that computes its weights?"""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS))


def known_shape(module: nn.Module, x: Tensor) -> tuple[int, ...] | None:
    """That of the result of some of torch's layers.

    Raises:
        RuntimeError: it cannot take this tensor.
    """
    kind = type(module)
    if kind in BATCH_NORMS:
        check_width(module, x, 1, module.num_features)
        return x.shape
    if kind is nn.Linear:
        check_width(module, x, -1, module.in_features)
        return (*x.shape[:-1], module.out_features)
    if kind in (*CONVOLUTIONS, SameConv2d) and x.dim() == module.weight.dim():
        check_width(module, x, 1, module.in_channels)
        if kind is SameConv2d:
            sizes = zip(x.shape[2:], module.stride, strict=True)
            return (len(x), module.out_channels, *(-(-n // stride) for n, stride in sizes))
        return None if isinstance(module.padding, str) else conv_shape(module, x)
    same = (Kind.SCALE, Kind.ZERO, Kind.CONSTANT, Kind.GATE)
    return x.shape if MODULES.get(kind) in same else None


def check_width(module: nn.Module, x: Tensor, axis: int, expected: int) -> None:
    if x.shape[axis] != expected:
        raise RuntimeError(f"{module} reads a tensor of {tuple(x.shape)}")


def conv_shape(conv: nn.Module, x: Tensor) -> tuple[int, ...] | None:
    settings = zip(conv.kernel_size, conv.padding, conv.stride, conv.dilation, strict=True)
    sizes = [
        (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for n, (kernel, padding, stride, dilation) in zip(x.shape[2:], settings, strict=True)
    ]
    return (len(x), conv.out_channels, *sizes) if min(sizes) > 0 else None
