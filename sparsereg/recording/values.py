"""A tracer whose proxies (`proxies`) know the value that they have for an example."""

import copy
import functools
import inspect
import logging
import operator
import random
from collections.abc import Callable, Iterator
from inspect import Parameter
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (  # torch has no public name for it
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsereg.graph.nodes import AUTOCAST, CODE, check_context, code_line
from sparsereg.graph.operations import known_shape
from sparsereg.recording.layers import in_eval_mode
from sparsereg.recording.proxies import Value, answering, is_tensor
from sparsereg.recording.rewrites import does_nothing, in_one_form

VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
NEW = {"new_zeros": torch.zeros, "new_ones": torch.ones, "new_full": torch.full}


class ValueTracer(fx.Tracer):
    """Records the one call `net(example)`, with the defaults of every other argument.

    Args:
        example: images; only their shape and dtype count.
        is_leaf: modules that are recorded as one operation.
        behind: for a leaf, the children through which its result goes, to be recorded after it.
        plain: for leaves that compute their weights, layers of torch that do the same.

    Attributes:
        decided: has a number, that of an image's size say, decided what was recorded?
        random: the innermost modules whose code has drawn random numbers.
        changed: modules whose code has put another tensor in the place of a buffer.
    """

    proxy_buffer_attributes = True  # what code computes of buffers follows them

    def __init__(
        self,
        example: Tensor,
        is_leaf: Callable[[nn.Module, str], bool],
        behind: Callable[[nn.Module], list[nn.Module]],
        plain: dict[nn.Module, nn.Module],
    ):
        super().__init__(autowrap_modules=(), param_shapes_constant=False)
        self.leaf, self.behind, self.plain = is_leaf, behind, plain
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.example = self.fake.from_tensor(example)
        self.running = False  # an operation, to know its value
        self.installed: set[nn.Module] = set()  # those of the network
        self.random: list[str] = []
        self.changed: list[str] = []
        self.decided = False

    def trace(self, root: nn.Module) -> fx.Graph:
        log = logging.getLogger("torch._subclasses.fake_tensor")  # of errors that are raised too
        level = log.level
        log.setLevel(logging.CRITICAL)
        self.installed = {*root.modules()}
        try:
            plain = (torch.autocast(device, enabled=False) for device in AUTOCAST)
            before, kept = random_state(), attributes_of(root)
            with torch.enable_grad(), next(plain), next(plain), answering(root):
                graph = super().trace(root)
            if not self.random and random_state() != before:
                self.random.append("")
            return graph
        finally:
            log.setLevel(level)
            self.changed = forget_values(root, kept)

    # What is recorded

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        parameters = [*inspect.signature(inspect.unwrap(root_fn)).parameters.values()]
        named = parameters[1:] and parameters[1].kind not in VARIADIC
        name = parameters[1].name if named else "x"  # it takes *images, as a decorator may
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return self.leaf(module, name)

    def call_module(self, m, forward, args, kwargs):
        if self.running or m not in self.installed:  # self.layers[:2], nn.ReLU()(x)
            return forward(*args, **kwargs)
        before, drawn = random_state(), len(self.random)
        result = super().call_module(m, forward, args, kwargs)
        for part in self.behind(m):
            result = part(result)
        if len(self.random) == drawn and random_state() != before:
            self.random.append(self.path_of_module(m))
        return result

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if self.running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> Value:
        return Value(node, self)

    def create_proxy(self, kind, target, args, kwargs, *others, **more):
        if target is torch._assert:
            return None
        check_context(target, args)
        if kind == "call_function" and isinstance(target, FunctionType) and is_theirs(target):
            return target(*args, **kwargs)  # which torch.fx.wrap has kept whole
        if target is operator.pow:
            if not any(is_tensor(a) for a in args):
                return operator.pow(
                    *(self.fixed(a) if isinstance(a, fx.Proxy) else a for a in args)
                )
            target = torch.pow
        if kind == "call_method" and target in ("dim", "ndimension", "is_contiguous"):
            return getattr(args[0].node.meta["value"], target)(*args[1:])
        if kind == "call_method" and target == "size":
            args, kwargs = (*args, *kwargs.values()), {}
            if len(args) == 1:
                return self.sizes(args[0])
        if kind == "call_method" and target in ("numel", "nelement"):
            return functools.reduce(operator.mul, self.sizes(args[0]), 1)
        if kind == "call_method" and target in NEW:
            return self.new(NEW[target], *args, **kwargs)
        target, args, kwargs = in_one_form(kind, target, args, kwargs, self.sizes)
        if kind != "call_module" and does_nothing(target, args, kwargs):
            return args[0]
        return super().create_proxy(kind, target, args, kwargs, *others, **more)

    def create_arg(self, a):
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def create_node(self, kind, target, args, kwargs, *others, **more):
        node = super().create_node(kind, target, args, kwargs, *others, **more)
        node.meta[CODE] = code_line(until=ValueTracer.trace.__code__)  # for messages
        if kind != "output":
            node.meta["value"] = self.run(node)
        return node

    # What it is for the example

    def run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.example
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        self.running = True
        try:
            with self.fake, torch.no_grad():
                if node.op == "get_attr":
                    return self.fake.from_tensor(operator.attrgetter(node.target)(self.root))
                if node.op == "call_module":
                    return self.module_result(node.target, args, kwargs)
                if node.op == "call_method":
                    own = args[0]  # of which squeeze_() and others leave the shape as it was
                    own = own.detach() if isinstance(own, Tensor) else own
                    return getattr(own, node.target)(*args[1:], **kwargs)
                return node.target(*args, **kwargs)
        finally:
            self.running = False

    def module_result(self, name: str, args: tuple, kwargs: dict) -> Any:
        module = self.root.get_submodule(name)
        simple = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        if simple and (shape := known_shape(self.plain.get(module, module), args[0])):
            return args[0].new_empty(shape)  # which torch takes long to find out
        try:
            return in_eval_mode(module, args, kwargs)
        except (RuntimeError, TypeError):  # its code looks at values: then with some
            with unset_fake_temporarily():
                args, kwargs = tree_map_only(Tensor, zeros_like, (args, kwargs))
                result = in_eval_mode(module, args, kwargs)
            return tree_map_only(Tensor, self.fake.from_tensor, result)

    def new(self, function: Callable, like: fx.Proxy, *size: Any, **named: Any) -> fx.Proxy:
        """`like.new_zeros(size)`, which reads of `like` no numbers."""
        kinds = {name: self.kind_of_numbers(like, name) for name in ("dtype", "device")}
        if function is not torch.full and not isinstance(size[0] if size else (), tuple | list):
            size = (size,)
        return self.create_proxy("call_function", function, size, kinds | named)

    def sizes(self, tensor: fx.Proxy) -> tuple[fx.Proxy, ...]:
        count = tensor.node.meta["value"].dim()
        sizes = ((tensor, i) for i in range(count))
        return tuple(self.create_proxy("call_method", "size", args, {}) for args in sizes)

    def kind_of_numbers(self, tensor: fx.Proxy, name: str) -> fx.Proxy:
        """The device or dtype of a tensor: that of the images, if it is the same, so that a weight
        is not read for it."""
        [images] = self.graph.find_nodes(op="placeholder")
        same = getattr(tensor.node.meta["value"], name) == getattr(self.example, name)
        source = self.proxy(images) if same else tensor
        return self.create_proxy("call_function", getattr, (source, name), {})

    def length(self, obj: fx.Proxy) -> int:
        value = obj.node.meta["value"]
        if isinstance(value, Tensor):
            return self.fixed(self.create_proxy("call_method", "size", (obj, 0), {}))
        return len(value)

    def fixed(self, obj: fx.Proxy) -> Any:
        value = obj.node.meta["value"]
        if isinstance(value, Tensor):
            raise TraceError("its control flow depends on the values of tensors")
        self.decided = True
        return value

    def number(self, value: Any) -> Any:
        return self.fixed(value) if isinstance(value, fx.Proxy) else value

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.fixed(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        return iter([obj[i] for i in range(self.length(obj))])


def attributes_of(net: nn.Module) -> dict[str, dict[str, Any]]:
    """Of each module, by its name."""
    return {
        name: {k: copy.copy(v) if isinstance(v, list | dict) else v for k, v in vars(part).items()}
        for name, part in net.named_modules()
    }


def forget_values(net: nn.Module, kept: dict[str, dict[str, Any]]) -> list[str]:
    """Give attributes in which code has put values, as those of a running mean, what they had
    before. Returns the modules of which buffers are among them."""
    changed = []
    for name, attributes in kept.items():
        own = vars(net.get_submodule(name))
        for key, value in [*own.items()]:
            if any(type(part) in (Value, FakeTensor) for part in tree_leaves(value)):
                changed += [name] * (key == "_buffers")
                own.pop(key)
                own.update({key: attributes[key]} if key in attributes else {})
    return changed


def random_state() -> tuple:
    """That of all generators that Python code usually draws from."""
    name, keys, *others = np.random.get_state()
    numpy = name, keys.tobytes(), *others
    return random.getstate(), numpy, torch.get_rng_state().numpy().tobytes()


def is_theirs(function: FunctionType) -> bool:
    return not (function.__module__ or "").startswith("torch.")


def zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)
