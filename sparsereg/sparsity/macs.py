"""Multiply-adds of convolutions and linear layers; not of attention's products of two tensors."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

COUNTED = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)


def count_macs(compute: Callable[[], object]) -> int:
    """Those of what is computed, for all images together."""
    fast = torch.backends.mha.get_fastpath_enabled()  # attention as one operation, not counted
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return counted(compute)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def counted(compute: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        compute()
    found = flops.get_flop_counts().get("Global", {})
    return sum(found.get(operation, 0) for operation in COUNTED) // 2
