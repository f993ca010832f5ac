"""A cut network as plain data, and back: so that its file needs no code or configuration of the
network it came from, and loading it runs nothing that the file brings along."""

import inspect
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.nodes import first_line, module_of, place_of
from sparsereg.graph.operations import METHODS, MODULES, NAMES, Kind, resolve_name
from sparsereg.graph.tracing import trace
from sparsereg.recording.layers import plain_copy
from sparsereg.surgery.description import (
    DTYPES,
    TYPES,
    check_description,
    check_layer,
    check_operation,
    is_known,
)

PLAIN = (bool, int, float, str, type(None))
MOST_NUMBERS = 2**30  # of all results for one image, 4 GB


def describe(net: fx.GraphModule) -> dict:
    """The operations of a traced network in order, and the settings of its layers.

    Returns:
        {"operations": [[name, how, what, arguments, named arguments], …],
         "layers": {name: [type, settings], …}, "image_shape": [C, H, W],
         "tensors": {name: [shape, dtype, is a parameter], …}}: plain types, no weights.

    Raises:
        UserError: a layer or function that is not among those of `operations`.
    """
    operations = [describe_operation(node) for node in net.graph.nodes]
    names = {node.target for node in net.graph.nodes if node.op == "call_module"}
    layers = {name: describe_layer(net.get_submodule(name)) for name in sorted(names)}
    found = {"operations": operations, "layers": layers}
    tensors = {node.target for node in net.graph.nodes if node.op == "get_attr"}
    tensors = {name for name in tensors if name.rpartition(".")[0] not in names}  # of no layer
    if tensors:
        found["tensors"] = {name: describe_tensor(net, name) for name in sorted(tensors)}
    if "image_shape" in net.meta:
        found["image_shape"] = [*net.meta["image_shape"]]
    return found


def describe_operation(node: fx.Node) -> list:
    target = NAMES.get(node.target) if node.op == "call_function" else node.target
    if target is None or (node.op == "call_method" and target not in METHODS):
        name = getattr(node.target, "__name__", node.target)
        raise UserError(f"{name}{place_of(node)} is a function that cannot be saved")
    arguments = [encode(a) for a in node.args], {k: encode(a) for k, a in node.kwargs.items()}
    return [node.name, node.op, target, *arguments]


def check_savable(net: nn.Module) -> None:
    """Raise UserError if a description of it with no gates would lack something, or would not be
    read again, which after a training would be late."""
    traced = trace(plain_copy(net))
    names = {node.target: None for node in traced.graph.nodes}
    made: set[str] = set()
    for node in traced.graph.nodes:
        layer, where = module_of(traced, node), f"{node.target}{place_of(node)}"
        described = describe_operation(node)
        if not is_known(check_operation, described, names, names, made):
            raise UserError(f"{where} has arguments that cannot be saved: {node.format_node()}")
        if layer is not None and MODULES.get(type(layer)) != Kind.GATE:
            settings = describe_layer(layer, where)
            if not is_known(check_layer, node.target, settings):
                raise UserError(f"{where} has settings that cannot be saved: {settings[1]}")
        if node.op == "get_attr":
            describe_tensor(traced, node.target)


def describe_tensor(net: nn.Module, name: str) -> list:
    tensor = operator.attrgetter(name)(net)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"{name} is a tensor of {dtype}, which cannot be saved")
    return [[*tensor.shape], dtype, isinstance(tensor, nn.Parameter)]


def describe_layer(layer: nn.Module, name: str = "") -> list:
    """Type and constructor arguments, which torch's layers keep under the same names; those that
    have their default are left out, so that a torch without them can read the file."""
    if TYPES.get(type(layer).__name__) is not type(layer):
        raise UserError(f"{name} {type(layer).__name__} is a layer that cannot be saved".strip())
    if getattr(layer, "in_proj_bias", layer) is None or getattr(layer, "bias_k", None) is not None:
        raise UserError(f"{name} is an attention of a form that cannot be saved".strip())
    parameters = inspect.signature(type(layer)).parameters
    settings = {name: getattr(layer, name) for name in parameters if hasattr(layer, name)}
    if "bias" in settings:  # a tensor or None; BatchNorm has it if it is affine
        settings["bias"] = layer.bias is not None or "affine" in settings
    settings = {n: plain(v) for n, v in settings.items() if v != parameters[n].default}
    return [type(layer).__name__, settings]


def plain(value: Any) -> Any:
    """Without NumPy's numbers, which a file of weights cannot hold."""
    if isinstance(value, tuple | list):
        return type(value)(plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


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
    check_description(description)
    try:
        return build_checked(description)
    except UserError:
        raise
    except Exception as error:  # whatever torch says to settings that make no sense
        raise UserError(
            f"the file describes a network that cannot be: {first_line(error)}"
        ) from error


def build_checked(description: dict) -> fx.GraphModule:
    root = nn.Module()
    for name, (kind, given) in description["layers"].items():
        add(root, name, TYPES[kind](**given))
    for name, (shape, dtype, is_parameter) in description.get("tensors", {}).items():
        tensor = torch.zeros(shape, dtype=getattr(torch, dtype))
        add(root, name, nn.Parameter(tensor) if is_parameter else tensor)
    graph, made = fx.Graph(), {}
    for name, how, what, arguments, named in description["operations"]:
        target = resolve_name(what) if how == "call_function" else what
        arguments = tuple(decode(argument, made) for argument in arguments)
        named = {key: decode(argument, made) for key, argument in named.items()}
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
        root.add_module(last, what)
    elif isinstance(what, nn.Parameter):
        root.register_parameter(last, what)
    else:
        root.register_buffer(last, what)


def decode(argument: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(argument, list):
        return [decode(item, made) for item in argument]
    if not isinstance(argument, dict):
        return argument
    [(kind, value)] = argument.items()
    if kind == "result_of":
        return made[value]
    if kind == "dtype":
        return getattr(torch, value)
    if kind == "ellipsis":
        return ...
    items = (decode(item, made) for item in value)
    return slice(*items) if kind == "slice" else tuple(items)


def shapes(description: dict, image_shape: list[int], classes: int) -> dict[str, Tensor]:
    """The state dict of a description, without memory for its numbers.

    Raises:
        UserError: the network cannot take such an image, tells other classes apart, or needs more
            memory for one image than `MOST_NUMBERS`.
    """
    with torch.device("meta"):
        net = build(description).eval()
        try:
            logits = Sizes(net).run(torch.empty(1, *image_shape))
        except UserError as error:
            raise UserError(first_line(error)) from error  # fx appends where it was
        except Exception as error:
            reason = f"the network cannot take images of {image_shape}: {first_line(error)}"
            raise UserError(reason) from error
    if tuple(logits.shape) != (1, classes):
        raise UserError(f"the network's output is {tuple(logits.shape)}, not one of {classes}")
    return net.state_dict()


class Sizes(fx.Interpreter):
    """Adds up the numbers that a network computes. Python's operators get tensors and numbers
    alone, none of them long: they would make a text, or a number, of any length."""

    numbers = 0

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if NAMES.get(target, "").startswith("_operator.") and target is not operator.getitem:
            for value in args:
                is_short = isinstance(value, int | float) and abs(value) < 2**63
                if not (is_short or isinstance(value, Tensor)):
                    raise UserError(f"an operator of {type(value).__name__}")
        return super().call_function(target, args, kwargs)

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor):
            self.numbers += result.numel()
            if self.numbers > MOST_NUMBERS:
                raise UserError(f"the network needs too much memory for an image, at {node.name}")
        return result
