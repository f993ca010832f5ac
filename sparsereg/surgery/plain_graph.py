"""A cut network as plain data, and back: so that its file needs no code or configuration of the
network it came from, and loading it runs nothing that the file brings along."""

import inspect
import re
from keyword import iskeyword
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.operations import FUNCTIONS, METHODS, MODULES, NAMES, Kind, resolve_name

TYPES = {known.__name__: known for known, kind in MODULES.items() if kind != Kind.GATE}
NAME = re.compile(r"\w+(\.\w+)*")
LAYER_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")
PLAIN = (bool, int, float, str, type(None))


def describe(net: fx.GraphModule) -> dict:
    """The operations of a traced network in order, and the settings of its layers.

    Returns:
        {"operations": [[name, how, what, arguments, named arguments], …],
         "layers": {name: [type, settings], …}, "tensors": {name: [shape, is a parameter], …},
         "image_shape": [C, H, W]}: plain types, no weights.

    Raises:
        UserError: a layer or function that is not among those of `operations`.
    """
    operations = []
    for node in net.graph.nodes:
        target = NAMES.get(node.target) if node.op == "call_function" else node.target
        known = {"call_function": target, "call_method": target in METHODS}
        if not known.get(node.op, True):
            raise UserError(f"{node.target} is a function that cannot be saved")
        arguments = [encode(a) for a in node.args], {k: encode(a) for k, a in node.kwargs.items()}
        operations.append([node.name, node.op, target, *arguments])
    names = {node.target for node in net.graph.nodes if node.op == "call_module"}
    layers = {name: describe_layer(net.get_submodule(name)) for name in sorted(names)}
    found = {"operations": operations, "layers": layers}
    tensors = {node.target for node in net.graph.nodes if node.op == "get_attr"}
    if tensors:
        found["tensors"] = {name: describe_tensor(net, name) for name in sorted(tensors)}
    if "image_shape" in net.meta:
        found["image_shape"] = [*net.meta["image_shape"]]
    return found


def describe_tensor(net: nn.Module, name: str) -> list:
    tensor = attrgetter(name)(net)
    return [[*tensor.shape], isinstance(tensor, nn.Parameter)]


def describe_layer(layer: nn.Module) -> list:
    """Type and constructor arguments, which torch's layers keep under the same names; those that
    have their default are left out, so that a torch without them can read the file."""
    if TYPES.get(type(layer).__name__) is not type(layer):
        raise UserError(f"{type(layer).__name__} is a layer that cannot be saved")
    parameters = inspect.signature(type(layer)).parameters
    settings = {name: getattr(layer, name) for name in parameters if hasattr(layer, name)}
    if "bias" in settings:  # a tensor or None; BatchNorm has it if it is affine
        settings["bias"] = layer.bias is not None or "affine" in settings
    return [
        type(layer).__name__,
        {name: v for name, v in settings.items() if v != parameters[name].default},
    ]


def encode(argument: Any) -> Any:
    if isinstance(argument, fx.Node):
        return {"result_of": argument.name}
    if isinstance(argument, slice):
        return {"slice": [encode(n) for n in (argument.start, argument.stop, argument.step)]}
    if argument is Ellipsis:
        return {"ellipsis": True}
    if isinstance(argument, tuple):
        return {"tuple": [encode(item) for item in argument]}
    if isinstance(argument, list):
        return [encode(item) for item in argument]
    if isinstance(argument, torch.dtype):
        return {"dtype": str(argument).removeprefix("torch.")}
    if isinstance(argument, PLAIN):
        return argument
    raise UserError(f"{argument!r} is an argument that cannot be saved")


def build(description: dict) -> fx.GraphModule:
    """The network of a description, with new weights, in training mode.

    Raises:
        UserError: it asks for something else than known layers and functions.
    """
    root, made = nn.Module(), {}
    for name, (type_name, settings) in description["layers"].items():
        check(type_name in TYPES and LAYER_NAME.fullmatch(name), f"{name}, a {type_name}")
        add(root, name, TYPES[type_name](**settings))
    for name, (shape, is_parameter) in description.get("tensors", {}).items():
        check(LAYER_NAME.fullmatch(name), name)
        add(root, name, nn.Parameter(torch.zeros(shape)) if is_parameter else torch.zeros(shape))
    graph = fx.Graph()
    for name, how, what, arguments, named in description["operations"]:
        for word in (name, *named):
            check(NAME.fullmatch(word) and not iskeyword(word), word)
        target = find_target(how, what, description)
        arguments = tuple(decode(argument, made) for argument in arguments)
        named = {key: decode(argument, made) for key, argument in named.items()}
        check_access(how, what, arguments)
        made[name] = graph.create_node(how, target, arguments, named, name)
    net = fx.GraphModule(root, graph)
    if "image_shape" in description:
        net.meta["image_shape"] = tuple(description["image_shape"])
    return net


def add(root: nn.Module, name: str, what: nn.Module | Tensor) -> None:
    """Under a dotted name, with the modules in between."""
    *path, last = name.split(".")
    for part in path:
        root = root._modules.setdefault(part, nn.Module())
    if isinstance(what, nn.Module):
        root._modules[last] = what
    elif isinstance(what, nn.Parameter):
        root.register_parameter(last, what)
    else:
        root.register_buffer(last, what)


def find_target(how: str, what: str, description: dict) -> Any:
    known = {
        "placeholder": what.isidentifier() and not iskeyword(what) and what != "self",
        "output": what == "output",
        "call_module": what in description["layers"],
        "get_attr": what in description.get("tensors", {}),
        "call_function": what in FUNCTIONS,
        "call_method": what in METHODS,
    }
    check(known.get(how), f"{how} {what}")
    return resolve_name(what) if how == "call_function" else what


def check_access(how: str, what: str, arguments: tuple) -> None:
    """Of an object only its shape may be asked for, and parts only by numbers."""
    if how == "call_function" and what == "builtins.getattr":
        check(arguments[1:] == ("shape",), f"{what} {arguments[1:]}")
    if how == "call_function" and what == "_operator.getitem":
        index = arguments[1] if isinstance(arguments[1], tuple) else arguments[1:]
        known = (int, slice, type(Ellipsis), type(None), fx.Node)
        check(all(isinstance(i, known) for i in index), f"{what} {index}")


def decode(argument: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(argument, dict):
        [(kind, value)] = argument.items()
        if kind == "dtype":
            check(isinstance(value, str) and value in DTYPES, repr(value))
            return getattr(torch, value)
        values = {"result_of": lambda: made[value], "ellipsis": lambda: Ellipsis}
        values["slice"] = lambda: slice(*(decode(item, made) for item in value))
        values["tuple"] = lambda: tuple(decode(item, made) for item in value)
        return values[kind]()
    if isinstance(argument, list):
        return [decode(item, made) for item in argument]
    check(isinstance(argument, PLAIN), repr(argument))
    return argument


def check(known: Any, what: str) -> None:
    # The names become Python code (torch.fx writes the forward of a graph): nothing else gets in.
    if not known:
        raise UserError(f"the file describes a network with an unknown part: {what}")
