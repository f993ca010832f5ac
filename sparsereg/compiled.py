"""Compiled computations, as training uses them."""

from collections.abc import Callable

import torch


def compiled(function: Callable) -> Callable:
    """`torch.compile`, with CUDA graphs on a GPU: batches have one size. The noise is drawn as in
    eager mode, so that both give the same losses."""
    options = {"triton.cudagraphs": True, "fallback_random": True}
    return torch.compile(function, dynamic=False, options=options)
