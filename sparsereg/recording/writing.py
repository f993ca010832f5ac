"""Writing into a tensor, `x[:, :8] = y`, as an operation whose result takes the tensor's name."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import TraceError


def written(tensor: fx.Proxy, index: Any, value: Any) -> fx.Proxy:
    """What `tensor` is after `tensor[index] = value`.

    Raises:
        TraceError: by tensors of numbers, or by one of truth values and others, what is written
            has no operation of its own.
    """
    index = index if isinstance(index, tuple) else (index,)
    if len(index) == 1 and isinstance(index[0], fx.Proxy):
        mask = index[0].node.meta["value"]
        if isinstance(mask, Tensor) and mask.dtype == torch.bool and is_one_number(value):
            missing = tensor.node.meta["value"].dim() - mask.dim()
            return torch.where(index[0][(..., *[None] * missing)], value, tensor)
    return put(tensor, [*index], value, 0)


def is_one_number(value: Any) -> bool:
    known = value.node.meta["value"] if isinstance(value, fx.Proxy) else value
    return not isinstance(known, Tensor) or known.dim() == 0


def put(tensor: fx.Proxy, index: list, value: Any, dim: int) -> fx.Proxy:
    """`value` at this index, which begins with dimension `dim`."""
    if not index:
        return filled(tensor, value)
    first, *rest = index
    if first is Ellipsis:
        return put(tensor, rest, value, tensor.node.meta["value"].dim() - len(rest))
    if isinstance(first, slice):
        if first == slice(None):
            return put(tensor, rest, value, dim + 1)
        part = put(tensor[(*[slice(None)] * dim, first)], rest, value, dim + 1)
        return torch.slice_scatter(tensor, part, dim, first.start, first.stop, first.step or 1)
    known = first.node.meta["value"] if isinstance(first, fx.Proxy) else first
    if isinstance(known, bool) or not isinstance(known, int):
        raise TraceError("it writes into a tensor by the values of another")
    part = put(tensor.select(dim, first), rest, value, dim)
    return torch.select_scatter(tensor, part, dim, first)


def filled(tensor: fx.Proxy, value: Any) -> fx.Proxy:
    """`value` as often as `tensor` has numbers."""
    if is_one_number(value):
        return torch.zeros_like(tensor) + value
    return value.to(tensor.dtype).expand_as(tensor)
