"""Is this what `plain_graph.describe` writes? Asked of a description out of a file, before anything
is built from it: types, names and counts.

Names become attributes of modules, and Python code (torch.fx writes the forward of a graph). So
they are identifiers joined by dots, none of them an attribute that a module has already.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Set
from keyword import iskeyword
from typing import Any

from sparsereg.errors import UserError
from sparsereg.graph.nodes import EMPTY
from sparsereg.graph.operations import FUNCTIONS, METHODS, MODULES, Kind

TYPES = {known.__name__: known for known, kind in MODULES.items() if kind != Kind.GATE}
DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")  # of tensors
LAYER_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
MOST = 20_000  # operations, layers
LONGEST = 100  # arguments of an operation, items of a list, characters of a text
POSITIVE = {
    *("in_channels", "out_channels", "in_features", "out_features", "num_features"),
    *("kernel_size", "stride", "dilation", "groups"),
}


def check_description(description: Any) -> None:
    """Raise UserError that names the first part that is not as it should be."""
    check(isinstance(description, dict), "no table")
    layers, operations = description.get("layers"), description.get("operations")
    check(isinstance(layers, dict) and len(layers) <= MOST, "its layers")
    check(isinstance(operations, list) and len(operations) <= MOST, "its operations")
    check("dense" not in description or is_size(description["dense"]), "its dense size")
    tensors = description.get("tensors", {})
    check(isinstance(tensors, dict) and len(tensors) <= MOST, "its tensors")
    images = description.get("image_shape", [1, 1, 1])
    check(is_shape(images) and len(images) in (2, 3, 4), "its images")
    for name, layer in layers.items():
        check_name(name, layers.keys() | tensors.keys())
        check_layer(name, layer)
    for name, tensor in tensors.items():
        check_name(name, layers.keys() | tensors.keys())
        check_tensor(name, tensor)
    made: set[str] = set()
    for operation in operations:
        check_operation(operation, layers, tensors, made)
    kinds = [operation[1] for operation in operations]
    in_order = kinds[:1] == ["placeholder"] and kinds[-1:] == ["output"]
    once = kinds.count("placeholder") == kinds.count("output") == 1
    check(in_order and once, "not one input first and one output last")
    called = {operation[2] for operation in operations if operation[1] == "call_module"}
    check(called == {*layers}, "a layer that no operation calls")
    read = {operation[2] for operation in operations if operation[1] == "get_attr"}
    check({*tensors} <= read, "a tensor that no operation reads")


def check(known: Any, what: object) -> None:
    if not known:
        raise UserError(f"the file describes a network with an unknown part: {what}")


def is_known(check_part: Callable[..., None], *arguments: object) -> bool:
    """Does it pass, as a part of a file will have to?"""
    try:
        check_part(*arguments)
    except UserError:
        return False
    return True


def is_size(dense: Any) -> bool:
    counts = [dense.get(key) for key in ("params", "macs")] if isinstance(dense, dict) else [None]
    return all(type(count) is int and 1 <= count < 2**63 for count in counts)


def is_shape(shape: Any, dims: int | None = None) -> bool:
    if not isinstance(shape, list) or len(shape) > LONGEST or dims not in (None, len(shape)):
        return False
    return all(type(n) is int and 0 <= n < 2**31 for n in shape) and math.prod(shape) < 2**40


def check_name(name: Any, others: Set) -> None:
    check(is_layer_name(name), f"the layer name {name!r}")
    parts = name.split(".")
    above = {".".join(parts[:i]) for i in range(1, len(parts))}
    check(not above & others, f"{name}, a layer within a layer")


def check_tensor(name: str, tensor: Any) -> None:
    """One parameter or buffer: [shape, dtype, is it a parameter?]."""
    check(isinstance(tensor, list) and len(tensor) == 3, f"the tensor {name}")
    shape, dtype, is_parameter = tensor
    check(is_shape(shape) and isinstance(dtype, str) and dtype in DTYPES, f"the tensor {name}")
    check(is_parameter is False or "float" in dtype, f"the parameter {name}")


def check_layer(name: str, layer: Any) -> None:
    """One layer: [type, settings]."""
    check(isinstance(layer, list) and len(layer) == 2, f"the layer {name}")
    type_name, settings = layer
    check(isinstance(type_name, str) and type_name in TYPES, f"{name}, a {type_name}")
    known = inspect.signature(TYPES[type_name]).parameters.keys() - {"device", "dtype"}
    check(isinstance(settings, dict) and settings.keys() <= known, f"the settings of {name}")
    for key, value in settings.items():
        check(is_setting(key, value), f"{key}={value!r} of {name}")


def is_layer_name(name: Any) -> bool:
    if not isinstance(name, str) or not LAYER_NAME.fullmatch(name):
        return False
    return not any(part.startswith("__") or hasattr(EMPTY, part) for part in name.split("."))


def is_setting(key: str, value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= LONGEST and all(is_setting(key, v) and is_flat(v) for v in value)
    if type(value) is int:
        return (1 if key in POSITIVE else -(2**31)) <= value < 2**31
    return is_flat(value)


def is_flat(value: Any) -> bool:
    """One plain value, of bearable size."""
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, str):
        return len(value) <= LONGEST
    return value is None or isinstance(value, bool | int)


def check_operation(operation: Any, layers: Mapping, tensors: Mapping, made: set[str]) -> None:
    """One operation: [name, how, what, arguments, named arguments]; its name joins `made`."""
    check(isinstance(operation, list) and len(operation) == 5, f"the operation {operation!r}")
    name, how, what, arguments, named = operation
    check(is_name(name) and name not in made, f"the operation name {name!r}")
    check(isinstance(how, str) and is_target(how, what, layers, tensors), f"{how} {what}")
    check(isinstance(arguments, list) and isinstance(named, dict), f"the arguments of {name}")
    check(len(arguments) + len(named) <= LONGEST, f"the arguments of {name}")
    if how == "placeholder":
        check(not arguments and not named, f"the arguments of {name}")
    for key in named:
        check(is_name(key), f"the argument name {key!r}")
    for argument in (*arguments, *named.values()):
        check(is_argument(argument, made), repr(argument))
    if how == "call_function":
        check(is_access(what, arguments, named), f"{what} {arguments[1:]}")
    made.add(name)


def is_access(what: str, arguments: list, named: dict) -> bool:
    """Of an object only its shape, type and device may be asked for, and parts only by their
    places."""
    if what == "builtins.getattr":
        return arguments[1:] in (["shape"], ["dtype"], ["device"]) and not named
    if what != "_operator.getitem":
        return True
    if len(arguments) != 2 or named:
        return False
    index = arguments[1]
    parts = index["tuple"] if isinstance(index, dict) and "tuple" in index else [index]
    places = ({"slice"}, {"ellipsis"}, {"result_of"})
    return all(
        part is None
        or isinstance(part, int)
        or (isinstance(part, list) and all(isinstance(n, int) for n in part))
        or (isinstance(part, dict) and part.keys() in places)
        for part in parts
    )


def is_name(name: Any) -> bool:
    is_identifier = isinstance(name, str) and name.isidentifier() and not iskeyword(name)
    return is_identifier and len(name) <= LONGEST and not name.startswith("__")


def is_target(how: str, what: Any, layers: Mapping, tensors: Mapping) -> bool:
    known = {
        "get_attr": isinstance(what, str) and (what in tensors or is_weight(what, layers)),
        "placeholder": is_name(what) and what != "self",
        "output": what == "output",
        "call_module": what in layers if isinstance(what, str) else False,
        "call_function": what in FUNCTIONS if isinstance(what, str) else False,
        "call_method": what in METHODS if isinstance(what, str) else False,
    }
    return bool(known.get(how))


def is_weight(what: str, layers: Mapping) -> bool:
    layer, _, name = what.rpartition(".")
    return layer in layers and name in ("weight", "bias")


def is_argument(argument: Any, made: set[str], depth: int = 0) -> bool:
    """A plain value, the result of an earlier operation, or a list of these, a slice, …"""
    if isinstance(argument, list):
        return depth < 3 and len(argument) <= MOST and all_arguments(argument, made, depth)
    if not isinstance(argument, dict):
        return is_flat(argument)
    if len(argument) != 1:
        return False
    [(kind, value)] = argument.items()
    if kind == "result_of":
        return isinstance(value, str) and value in made
    if kind == "dtype":
        return isinstance(value, str) and value in DTYPES
    if kind == "ellipsis":
        return value is True
    if kind == "slice" and (not isinstance(value, list) or len(value) != 3):
        return False
    is_list = isinstance(value, list) and len(value) <= LONGEST and depth < 3
    return kind in ("slice", "tuple") and is_list and all_arguments(value, made, depth)


def all_arguments(arguments: list, made: set[str], depth: int) -> bool:
    return all(is_argument(argument, made, depth + 1) for argument in arguments)
