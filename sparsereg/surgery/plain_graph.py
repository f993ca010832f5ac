"""A cut network as plain data, and back: so that its file needs no code or configuration of the
network it came from, and loading it runs nothing that the file brings along."""

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.operations import NAMES, kind_of, resolve_name
from sparsereg.surgery.description import TYPES, check_description

PLAIN = (bool, int, float, str, type(None))
MOST_NUMBERS = 2**30  # of all results for one image, 4 GB


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
    layers = {name: TYPES[kind](**given) for name, (kind, given) in description["layers"].items()}
    graph, made = fx.Graph(), {}
    for name, how, what, arguments, named in description["operations"]:
        target = resolve_name(what) if how == "call_function" else what
        arguments = tuple(decode(argument, made) for argument in arguments)
        named = {key: decode(argument, made) for key, argument in named.items()}
        made[name] = graph.create_node(how, target, arguments, named, name)
    net = fx.GraphModule(layers, graph)
    for node in graph.nodes:
        kind_of(net, node)  # refuses known operations with unknown arguments
    return net


def decode(argument: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(argument, dict):
        return made[argument["result_of"]]
    if isinstance(argument, list):
        return [decode(item, made) for item in argument]
    return argument


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
    """Adds up the numbers that a network computes."""

    numbers = 0

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor):
            self.numbers += result.numel()
            if self.numbers > MOST_NUMBERS:
                raise UserError(f"the network needs too much memory for an image, at {node.name}")
        return result


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
