"""Layers that torch does not have."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsereg.model import fused


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d without counting batches, which a fixed momentum never reads.

    The 49 counters of GoogleNet would be 49 more operations a step.
    """

    def forward(self, x: Tensor) -> Tensor:
        if fused.normalises(self, x):
            return self.fused([x])
        statistics = self.running_mean, self.running_var
        affine = self.weight, self.bias
        return F.batch_norm(x, *statistics, *affine, self.training, self.momentum, self.eps)

    def fused(self, xs: Sequence[Tensor], relu: bool = False) -> Tensor:
        statistics = self.running_mean, self.running_var
        return fused.batch_norm(
            xs, statistics, self.weight, self.bias, self.momentum, self.eps, relu
        )


class FrozenBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of any number of dimensions that keeps its statistics, in training too."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        return super().train(False)

    def _check_input_dim(self, x: Tensor) -> None:
        pass


def normalise(xs: Sequence[Tensor], norms: Sequence[BatchNorm], act_fn: nn.Module) -> Tensor:
    """The activation of the BatchNorms of all `xs`, concatenated: (N, sum of widths, H, W).

    One operation for all of them: on a CPU, torch's is slow for few channels (docs/performance.md).
    """
    if len(norms) == 1:
        [x], [norm] = xs, norms
        is_usual = isinstance(act_fn, nn.ReLU) and isinstance(norm, BatchNorm)
        if is_usual and fused.normalises(norm, x):
            return norm.fused([x], relu=True)
        return act_fn(norm(x))
    mean, var, weight, bias = (
        torch.cat([getattr(norm, name) for norm in norms])  # (sum of widths,)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    training, momentum, eps = norms[0].training, norms[0].momentum, norms[0].eps
    if isinstance(act_fn, nn.ReLU) and all(map(fused.normalises, norms, xs)):
        y = fused.batch_norm(xs, (mean, var), weight, bias, momentum, eps, relu=True)
    else:
        x = torch.cat(list(xs), dim=1)
        y = act_fn(F.batch_norm(x, mean, var, weight, bias, training, momentum, eps))
    if training:
        widths = [norm.num_features for norm in norms]
        statistics = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
        # in one kernel; torch's optimizers use it, and it has no public name
        torch._foreach_copy_(statistics, [*mean.split(widths), *var.split(widths)])
    return y


class MaxPool(nn.MaxPool2d):
    """3x3 max-pooling with padding 1."""

    def __init__(self, stride: int = 1):
        super().__init__(3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return fused.max_pool(x, self.stride) if fused.takes(x) else super().forward(x)


class ChannelScale(nn.Module):
    """Multiplies channel c by the constant `scale[c]`, shape (C,); `axis` is their dimension."""

    def __init__(self, num_features: int, axis: int = 1):
        super().__init__()
        self.num_features = num_features
        self.axis = axis
        self.register_buffer("scale", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return x * self.scale.view(shape)


class ChannelShift(nn.Module):
    """Adds the constant `shift[c]`, shape (C,), to channel c; `axis` is their dimension."""

    def __init__(self, num_features: int, axis: int = 1):
        super().__init__()
        self.num_features = num_features
        self.axis = axis
        self.register_buffer("shift", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return x + self.shift.view(shape)


class ChannelSelect(nn.Module):
    """Channel c of the output is channel `order[c]` of the input, or zero where that is -1.

    Args:
        num_features: channels of the output, C'.
        positions: features of each channel, where it selects features of a flattened tensor.
        axis: dimension of the channels.
        zeros: may `order` be -1?
    """

    def __init__(self, num_features: int, positions: int = 1, axis: int = 1, zeros: bool = False):
        super().__init__()
        self.num_features = num_features
        self.positions = positions
        self.axis = axis
        self.zeros = zeros
        self.register_buffer("order", torch.arange(num_features))

    def forward(self, x: Tensor) -> Tensor:
        if not self.zeros:
            return x.index_select(self.axis, self.order)
        y = x.index_select(self.axis, self.order.clamp(min=0))
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return y * self.order.ge(0).view(shape).to(x.dtype)


class SameConv2d(nn.Conv2d):
    """A convolution with the padding of TensorFlow: as much as the output needs to have 1 / stride
    of the size of the input, and where that is odd, more behind than before."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for i in (1, 0):  # F.pad counts from the last dimension
            size, stride = x.shape[-2 + i], self.stride[i]
            reach = (self.kernel_size[i] - 1) * self.dilation[i] + 1
            pad = max((-(-size // stride) - 1) * stride + reach - size, 0)
            pads += [pad // 2, pad - pad // 2]
        return self._conv_forward(F.pad(x, pads), self.weight, self.bias)


class ImageShape(nn.Module):
    """Images (N, C, H, W) as they are, but of this (C, H, W) only: the code of a network has made
    decisions by it when it was traced."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            expected, got = ("x".join(map(str, s)) for s in (self.shape, x.shape[1:]))
            raise ValueError(f"this network was traced for images of {expected}, not {got}")
        return x


def channels_last(net: nn.Module) -> nn.Module:
    """`net.to(memory_format=torch.channels_last)`, which torch refuses with 3D convolutions."""
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


WIDEST_BLOCK = 16  # channels that oneDNN computes at once: 8 with AVX2, 16 with AVX-512


def protect_narrow_strides(net: nn.Module) -> nn.Module:
    """Let 1x1 convolutions with a stride and few channels read images in torch's own format.

    In channels_last oneDNN writes behind its workspace when it computes the gradient of their
    weights (oneDNN issue 6035, open in torch 2.15), which ends the process or spoils numbers.
    """
    for module in net.modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1:
            continue
        is_strided = module.kernel_size == (1, 1) and max(module.stride) > 1
        if is_strided and module.in_channels < WIDEST_BLOCK:
            module.weight.data = as_torch_has_it(module.weight.data)
            module.register_forward_pre_hook(read_as_torch_has_it)
    return net


def read_as_torch_has_it(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (as_torch_has_it(inputs[0]),)


def as_torch_has_it(x: Tensor) -> Tensor:
    """A copy that is not channels_last; `contiguous` keeps the strides where C is 1, or H and W."""
    return x.clone(memory_format=torch.contiguous_format)
