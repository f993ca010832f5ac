"""BatchNorm, ReLU and max-pooling for training in bfloat16 on a CPU, by compiled kernels.

The same mathematics as torch's, in fewer passes over memory. What lies between two tensors in
bfloat16 is computed in float32, statistics in part in float64.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsereg.model import kernels

MOST_CHANNELS = 4096  # some rows of so many numbers lie on the stack


def takes(x: Tensor) -> bool:
    """Can the kernels compute this (N, C, H, W)? Not what is traced, compiled or exported."""
    return (
        isinstance(x, Tensor)
        and x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.dim() == 4
        and 0 < x.shape[1] <= MOST_CHANNELS
        and x.numel() > x.shape[1]
        and not torch.compiler.is_compiling()
        and kernels.library() is not None
    )


def normalises(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Can the kernels train this layer on `x`?"""
    is_usual = norm.affine and norm.track_running_stats and norm.momentum is not None
    return norm.training and takes(x) and is_usual and norm.weight.dtype == torch.float32


def batch_norm(
    xs: Sequence[Tensor],
    statistics: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    momentum: float,
    eps: float,
    relu: bool = False,
) -> Tensor:
    """`F.batch_norm` in training mode of the concatenation of `xs`, (N, C_i, H, W) each, perhaps
    with ReLU: (N, sum of C_i, H, W), channels_last.

    Args:
        statistics: running mean and variance, (sum of C_i,) each, changed in place.
    """
    return BatchNormRelu.apply(statistics, momentum, eps, relu, weight, bias, *xs)


def max_pool(x: Tensor, stride: int) -> Tensor:
    """`F.max_pool2d(x, 3, stride, padding=1)`; the gradient goes to the same places."""
    return MaxPool3x3.apply(x, stride)


def pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N * H * W, C) with neighbouring channels, without a copy if channels_last,
    whole or a part of the channels."""
    flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def parts(xs: Sequence[Tensor]) -> ctypes.Array:
    """Where (pixels, channels) tensors lie."""
    return (kernels.Part * len(xs))(*((x.data_ptr(), x.stride(0), x.shape[1]) for x in xs))


class BatchNormRelu(torch.autograd.Function):
    """See `batch_norm`. Backward finds out from x again where ReLU was positive."""

    @staticmethod
    def forward(ctx, statistics, momentum, eps, relu, weight, bias, *xs: Tensor) -> Tensor:
        flat = [pixels(x) for x in xs]
        images, _, height, width = xs[0].shape
        shape = images, len(weight), height, width
        y = torch.empty(shape, dtype=xs[0].dtype, memory_format=torch.channels_last)
        mean, inverse = torch.empty(2, len(weight))  # 1 / standard deviation
        ctx.lowest = 0.0 if relu else -torch.inf
        kernels.library().batch_norm(
            *(parts(flat), len(flat), y.data_ptr(), len(flat[0]), len(weight)),
            *(t.data_ptr() for t in (weight, bias, *statistics)),
            *(momentum, eps, ctx.lowest, mean.data_ptr(), inverse.data_ptr()),
        )
        ctx.save_for_backward(weight, bias, mean, inverse, *xs)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor) -> tuple:
        weight, bias, mean, inverse, *xs = ctx.saved_tensors
        flat, gy = [pixels(x) for x in xs], pixels(gy)
        g_weight, g_bias = torch.empty_like(weight), torch.empty_like(bias)
        gxs = [torch.empty_like(x, memory_format=torch.channels_last) for x in xs]
        kernels.library().batch_norm_backward(
            *(parts(flat), parts([pixels(gx) for gx in gxs]), len(flat)),
            *(gy.data_ptr(), len(gy), len(weight)),
            *(t.data_ptr() for t in (weight, bias, mean, inverse)),
            *(ctx.lowest, g_weight.data_ptr(), g_bias.data_ptr()),
        )
        return None, None, None, None, g_weight, g_bias, *gxs


class MaxPool3x3(torch.autograd.Function):
    """See `max_pool`. Which neighbour was the largest is kept in two bytes, not in eight."""

    @staticmethod
    def forward(ctx, x: Tensor, stride: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, height, width = ctx.shape = x.shape
        ctx.stride = stride
        out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
        y = torch.empty(
            (images, channels, out_height, out_width),
            dtype=x.dtype,
            memory_format=torch.channels_last,
        )
        rows = torch.empty(y.numel(), dtype=torch.uint8)
        columns = torch.empty(images * height * out_width * channels, dtype=torch.uint8)
        tensors = (x, y, rows, columns)
        kernels.library().max_pool(
            *(t.data_ptr() for t in tensors), images, height, width, channels, stride
        )
        ctx.save_for_backward(rows, columns)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor) -> tuple:
        images, channels, height, width = ctx.shape
        gy = gy.contiguous(memory_format=torch.channels_last)
        gx = torch.empty(ctx.shape, dtype=gy.dtype, memory_format=torch.channels_last)
        tensors = (gy, *ctx.saved_tensors, gx)
        kernels.library().max_pool_backward(
            *(t.data_ptr() for t in tensors), images, height, width, channels, ctx.stride
        )
        return gx, None
