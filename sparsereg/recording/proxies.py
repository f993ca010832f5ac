"""What stands for the results of operations while the code of a network is recorded.

They know the value that they have for an example, so the code may ask for shapes and types, and
branch on them.
"""

import builtins
import math
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.autograd import Variable
from torch.fx.proxy import TraceError

from sparsereg.graph.operations import Kind, kind_of
from sparsereg.recording.rewrites import IN_PLACE
from sparsereg.recording.writing import written

PARTS = (Kind.MOVE, Kind.SPLIT)  # that have the memory of what they are of
AS_METHODS = {"T": ("t",), "mT": ("transpose", -2, -1)}
# take it as one tuple, or as numbers, among which torch sees no `Value`
OF_A_SIZE = (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)


class Value(fx.Proxy):
    """A number, shape or tensor of the network, and its value for the example."""

    __array_ufunc__ = None  # NumPy's numbers leave it to compute with them

    def __getattr__(self, name: str) -> Any:
        value = self.node.meta["value"]
        if isinstance(value, tuple) and hasattr(value, name):
            parts = [i for i, part in enumerate(value) if part is getattr(value, name)]
            if parts:  # x.max(1).values
                return self[parts[0]]
        if isinstance(value, Tensor):
            if name == "shape":
                return self.tracer.sizes(self)
            if name in AS_METHODS:
                method, *arguments = AS_METHODS[name]
                return getattr(self, method)(*arguments)
            if name in ("ndim", "requires_grad", "is_cuda", "is_nested"):
                return getattr(value, name)
            if name == "device" or (name == "dtype" and self.node.op == "get_attr"):
                return self.tracer.kind_of_numbers(self, name)
        if isinstance(value, torch.device) and name in ("type", "index"):
            return getattr(value, name)
        if not hasattr(type(value), name):
            raise AttributeError(f"{type(value).__name__} has no {name}")
        return super().__getattr__(name)

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.node.op == "get_attr" or kind_of(self.tracer.root, self.node) in PARTS:
            raise TraceError("it writes into what is part of another tensor, or of the network")
        self.node = written(self, index, value).node

    def __hash__(self) -> int:
        return id(self)


def of_number(function: Callable) -> Callable:
    return lambda self, *more: function(self.tracer.fixed(self), *more)


def in_place(function: Callable, plain: Callable) -> Callable:
    """Of a tensor, which has other names perhaps; a number is another one afterwards."""

    def method(self: Value, other: Any) -> fx.Proxy:
        target = function if is_tensor(self) else plain
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for function in (operator.index, int, float, math.ceil, math.floor, math.trunc, round):
    setattr(Value, f"__{function.__name__}__", of_number(function))
for function, plain in IN_PLACE.items():  # x += y, which torch.fx records as x = x + y
    setattr(Value, f"__{function.__name__}__", in_place(function, plain))


def is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Proxy) and isinstance(value.node.meta["value"], Tensor)


@contextmanager
def answering(net: nn.Module) -> Iterator[None]:
    """While the code of `net` runs, what torch.fx cannot see takes a `Value` for what it stands
    for: `isinstance` and `len`, in the files that the classes of its modules are written in,
    `torch.is_tensor`, `Variable`, and sizes given number by number."""
    new = Variable.__new__

    def variable(cls: type, data: Any = None, *more: Any, **named: Any) -> Any:
        return data if isinstance(data, Value) else new(cls, data, *more, **named)

    with ExitStack() as patches:
        for file in files_of(net):
            patches.enter_context(patch.object(file, "isinstance", is_instance, create=True))
            patches.enter_context(patch.object(file, "len", length, create=True))
        patches.enter_context(patch.object(torch, "is_tensor", lambda a: is_instance(a, Tensor)))
        patches.enter_context(patch.object(Variable, "__new__", variable))
        for function in OF_A_SIZE:
            patches.enter_context(patch.object(torch, function.__name__, of_a_size(function)))
        yield


def is_instance(value: Any, kinds: Any) -> bool:
    return builtins.isinstance(value, kinds) or (
        builtins.isinstance(value, Value) and builtins.isinstance(value.node.meta["value"], kinds)
    )


def length(value: Any) -> Any:
    """Of a tensor its first size, as `Value`: Python makes a number of what `__len__` returns."""
    return value.shape[0] if is_tensor(value) else builtins.len(value)


def files_of(net: nn.Module) -> list[ModuleType]:
    """Python's modules that the classes of the network are written in."""
    kinds = {kind for module in net.modules() for kind in type(module).__mro__}
    names = {kind.__module__ for kind in kinds if not kind.__module__.startswith("torch.")}
    return [sys.modules[name] for name in sorted(names & sys.modules.keys() - {"builtins"})]


def of_a_size(function: Callable) -> Callable:
    def method(*size: Any, **named: Any) -> Any:
        if any(isinstance(n, Value) for n in size):
            return function(size, **named)
        return function(*size, **named)

    return method
