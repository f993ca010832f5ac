"""A cut network as plain data, and back: so that its file needs no code or configuration of the
network it came from, and loading it runs nothing that the file brings along."""

import inspect
import re
from keyword import iskeyword
from typing import Any

from torch import fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.operations import FUNCTIONS, METHODS, MODULES, NAMES, kind_of, resolve_name
from sparsereg.model.basic_l0_blocks import L0Gate

TYPES = {known.__name__: known for known in MODULES if known is not L0Gate}
NAME = re.compile(r"\w+(\.\w+)*")
LAYER_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
PLAIN = (bool, int, float, str, type(None))


def describe(net: fx.GraphModule) -> dict:
    """The operations of a traced network in order, and the settings of its layers.

    Returns:
        {"operations": [[name, how, what, arguments, named arguments], …],
         "layers": {name: [type, settings], …}}: plain types, no weights.

    Raises:
        UserError: a layer or function that is not among those of `operations`.
    """
    operations = []
    for node in net.graph.nodes:
        target = NAMES.get(node.target) if node.op == "call_function" else node.target
        if target is None:
            raise UserError(f"{node.target} is a function that cannot be saved")
        arguments = [encode(a) for a in node.args], {k: encode(a) for k, a in node.kwargs.items()}
        operations.append([node.name, node.op, target, *arguments])
    names = {node.target for node in net.graph.nodes if node.op == "call_module"}
    layers = {name: describe_layer(net.get_submodule(name)) for name in sorted(names)}
    return {"operations": operations, "layers": layers}


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
    if isinstance(argument, list | tuple):
        return [encode(item) for item in argument]
    if isinstance(argument, PLAIN):
        return argument
    raise UserError(f"{argument!r} is an argument that cannot be saved")


def build(description: dict) -> fx.GraphModule:
    """The network of a description, with new weights, in training mode.

    Raises:
        UserError: it asks for something else than known layers and functions.
    """
    layers = {}
    for name, (type_name, settings) in description["layers"].items():
        check(type_name in TYPES and LAYER_NAME.fullmatch(name), f"{name}, a {type_name}")
        layers[name] = TYPES[type_name](**settings)
    graph, made = fx.Graph(), {}
    for name, how, what, arguments, named in description["operations"]:
        for word in (name, *named):
            check(NAME.fullmatch(word) and not iskeyword(word), word)
        target = find_target(how, what, layers)
        arguments = tuple(decode(argument, made) for argument in arguments)
        named = {key: decode(argument, made) for key, argument in named.items()}
        made[name] = graph.create_node(how, target, arguments, named, name)
    net = fx.GraphModule(layers, graph)
    for node in graph.nodes:
        kind_of(net, node)  # refuses known operations with unknown arguments
    return net


def find_target(how: str, what: str, layers: dict[str, nn.Module]) -> Any:
    known = {
        "placeholder": what.isidentifier() and not iskeyword(what) and what != "self",
        "output": what == "output",
        "call_module": what in layers,
        "call_function": what in FUNCTIONS,
        "call_method": what in METHODS,
    }
    check(known.get(how), f"{how} {what}")
    return resolve_name(what) if how == "call_function" else what


def decode(argument: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(argument, dict):
        return made[argument["result_of"]]
    if isinstance(argument, list):
        return [decode(item, made) for item in argument]
    check(isinstance(argument, PLAIN), repr(argument))
    return argument


def check(known: Any, what: str) -> None:
    # The names become Python code (torch.fx writes the forward of a graph): nothing else gets in.
    if not known:
        raise UserError(f"the file describes a network with an unknown part: {what}")
