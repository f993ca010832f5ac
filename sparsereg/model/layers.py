"""Layers that torch does not have."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d without counting batches, which a fixed momentum never reads.

    The 49 counters of GoogleNet would be 49 more operations a step.
    """

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        affine = self.weight, self.bias
        return F.batch_norm(x, *statistics, *affine, self.training, self.momentum, self.eps)


def joint_batch_norm(x: Tensor, norms: Sequence[BatchNorm]) -> Tensor:
    """The same as each of `norms` on its own part of the channels of `x`, (N, sum of widths, H, W),
    in one operation: on a CPU, torch's is slow for few channels (docs/performance.md)."""
    mean, var, weight, bias = (
        torch.cat([getattr(norm, name) for norm in norms])  # (sum of widths,)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    training, momentum, eps = norms[0].training, norms[0].momentum, norms[0].eps
    y = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    if training:
        widths = [norm.num_features for norm in norms]
        statistics = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
        torch._foreach_copy_(statistics, [*mean.split(widths), *var.split(widths)])
    return y


class ChannelScale(nn.Module):
    """Multiplies channel c of an (N, C, …) tensor by the constant `scale[c]`, shape (C,)."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features
        self.register_buffer("scale", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(-1, *[1] * (x.dim() - 2))  # (C, 1, …)


class ChannelShift(nn.Module):
    """Adds the constant `shift[c]`, shape (C,), to channel c of an (N, C, …) tensor."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features
        self.register_buffer("shift", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift.view(-1, *[1] * (x.dim() - 2))  # (C, 1, …)


class ChannelSelect(nn.Module):
    """Channel c of the output is channel `order[c]` of an (N, C, …) tensor; `order` has C' ≤ C.

    Args:
        num_features: C'.
        positions: features of each channel, where it selects features of a flattened tensor.
    """

    def __init__(self, num_features: int, positions: int = 1):
        super().__init__()
        self.num_features = num_features
        self.positions = positions
        self.register_buffer("order", torch.arange(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)
