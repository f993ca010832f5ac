"""Operations that the graph has in another form: those that work in place, whose results are what
later operations read, calls whose arguments can be written in several ways, and what is put in the
place of others."""

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from sparsereg.graph.nodes import module_of, refuse
from sparsereg.graph.operations import Kind, kind_of
from sparsereg.model.layers import ImageShape

NAMES = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
IN_PLACE = {getattr(operator, f"i{name}"): getattr(operator, name) for name in NAMES}
LISTS = (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack)
STACKS = {torch.hstack: 1, torch.vstack: 0}
SQUEEZES = (torch.squeeze, "squeeze", "squeeze_")
AS_ANOTHER = {"expand_as": "expand", "view_as": "view", "reshape_as": "reshape"}


def replace_in_place(traced: fx.GraphModule) -> None:
    """What works in place on a tensor that is read again later, later readers read from the result.

    Raises:
        UserError: part of the tensor has another name, through which the change shows too.
    """
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        if not changes_its_input(traced, node):
            continue
        if node.target is operator.setitem or not node.all_input_nodes:
            refuse(traced, node, ": it writes into a tensor")
        changed = node.all_input_nodes[0]
        if changed.op == "get_attr":
            refuse(traced, node, ": it changes a parameter or buffer")
        others = [user for user in changed.users if user is not node]
        if shows_elsewhere(traced, changed, node) or any(
            is_view(traced, user) and order[user] < order[node] for user in others
        ):
            if node.target not in IN_PLACE:  # parts are often scaled so, which shows nowhere
                refuse(traced, node, ": it works in place on a tensor that is read elsewhere too")
            others = []
        for user in others:
            if order[user] > order[node]:
                user.replace_input_with(changed, node)
        node.target = not_in_place(node)


def not_in_place(node: fx.Node) -> object:
    """Its function or method without the underscore, which computes the same."""
    if node.target in IN_PLACE:
        return IN_PLACE[node.target]
    name = getattr(node.target, "__name__", node.target)
    if node.op == "call_method" and hasattr(Tensor, name.rstrip("_")):
        return name.rstrip("_")
    if node.op == "call_function" and name.endswith("_"):
        known = (getattr(place, name.rstrip("_"), None) for place in (nn.functional, torch))
        return next(filter(None, known), node.target)
    return node.target


def is_view(traced: fx.GraphModule, node: fx.Node) -> bool:
    names = ("contiguous", "Identity", "Dropout", "dropout", "to", "float", "type_as")
    module = traced.get_submodule(node.target) if node.op == "call_module" else None
    name = type(module).__name__ if module is not None else str(node.target)
    kind = kind_of(traced, node)
    return kind in (Kind.MOVE, Kind.SPLIT) or name in names


def shows_elsewhere(traced: fx.GraphModule, changed: fx.Node, by: fx.Node) -> bool:
    """Is it a part, or another view, of a tensor that something else reads?"""
    while is_view(traced, changed) or changes_its_input(traced, changed):
        [source, *_] = changed.all_input_nodes
        if any(user not in (changed, by) for user in source.users):
            return True
        changed = source
    return False


def changes_its_input(traced: fx.GraphModule, node: fx.Node) -> bool:
    in_place = getattr(module_of(traced, node), "inplace", False) or node.kwargs.get("inplace")
    name = getattr(node.target, "__name__", node.target)
    named_so = node.op in ("call_method", "call_function") and name.endswith("_")
    return bool(in_place) or named_so or node.target in (operator.setitem, *IN_PLACE)


def in_one_form(
    kind: str, target: object, args: tuple, kwargs: dict, sizes: Callable[[fx.Proxy], tuple]
) -> tuple[object, tuple, dict]:
    """Function or method, and arguments, of a call that can be written in several ways."""
    if kind == "call_method" and target in ("to", "contiguous"):  # which format: no matter here
        kwargs = {key: value for key, value in kwargs.items() if key != "memory_format"}
    if kind == "call_method" and target in AS_ANOTHER:
        target, args = AS_ANOTHER[target], (args[0], *sizes(args[1]))
    if target in LISTS:
        args, kwargs = as_list(*args, **kwargs)
    if target in STACKS:  # of tensors of at least two dimensions
        target, args = torch.cat, (*args, STACKS[target])
    if kind != "call_module" and target in SQUEEZES:
        args, kwargs = squeezed(*args, **kwargs), {}
    return target, args, kwargs


def does_nothing(target: object, args: tuple, kwargs: dict) -> bool:
    """Of a call in that form: is its result the tensor itself?"""
    return (target == "to" and len(args) == 1 and not kwargs) or (
        target in SQUEEZES and args[1] == ()
    )


def squeezed(tensor: fx.Proxy, dim: int | tuple[int, ...] | None = None) -> tuple:
    """The arguments of `torch.squeeze`, with the dimensions that it takes away: also where another
    one has one channel, or image, left."""
    shape = tensor.node.meta["value"].shape
    dims = range(1, len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    return tensor, tuple(d for d in dims if shape[d] == 1)


def as_list(tensors, *others, **named) -> tuple[tuple, dict]:
    """The arguments of `torch.cat` and others in one form."""
    if "axis" in named:
        named["dim"] = named.pop("axis")
    return ([*tensors], *others), named


def use_results(traced: fx.GraphModule, node: fx.Node, result: object) -> None:
    """In place of the result of `node`, or of the parts of it that are taken."""
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
        return
    for user in list(node.users):
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            refuse(traced, node, ": its code looks at values, and its results are used together")
        user.replace_all_uses_with(result[user.args[1]])
        traced.graph.erase_node(user)


def hold_shape(traced: fx.GraphModule, example: Tensor, net: nn.Module) -> tuple[str, nn.Module]:
    """Let the graph refuse images of another size, by a layer, which is returned with its name, one
    that `net` does not have."""
    [images] = traced.graph.find_nodes(op="placeholder")
    layer = ImageShape(example.shape[1:])
    name = free_name(net, "image_shape")
    traced.add_submodule(name, layer)
    with traced.graph.inserting_after(images):
        node = traced.graph.call_module(name, (images,))
    node.meta["value"] = images.meta["value"]
    images.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    traced.recompile()
    return name, layer


def free_name(net: nn.Module, name: str) -> str:
    while hasattr(net, name):
        name += "_"
    return name
