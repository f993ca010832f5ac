"""A network as a graph of operations (torch.fx)."""

import operator
from collections import Counter

import torch
from torch import fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.nodes import module_of, refuse, stopped_at
from sparsereg.graph.operations import FUNCTIONS, MODULES, NAMES, Kind


class ChannelTracer(fx.Tracer):
    """Keeps gates and layers whole, subclasses of torch's own too."""

    record_stack_traces = True  # for messages

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, tuple(MODULES)) or super().is_leaf_module(module, name)


def trace(net: nn.Module) -> fx.GraphModule:
    """The graph of `net` in its present mode; it shares the modules of `net`.

    Raises:
        UserError: the Python code depends on the values of tensors, or a layer is used twice.
    """
    try:
        graph = ChannelTracer().trace(net)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NameError) as error:
        where = stopped_at(error, net)
        raise UserError(f"{type(net).__name__} cannot be traced{where}: {error}") from error
    for node in graph.find_nodes(op="placeholder"):
        if not node.users:  # an optional argument
            graph.erase_node(node)
    traced = fx.GraphModule(net, graph)
    for node in graph.nodes:
        if changes_its_input(traced, node) and len(node.all_input_nodes[0].users) > 1:
            refuse(traced, node, ": it works in place on a tensor that is read elsewhere too")
    replace_shuffles(graph)
    drop_expansions(graph)
    graph.eliminate_dead_code()
    traced.recompile()
    check_nothing_is_shared(traced)
    return traced


def changes_its_input(traced: fx.GraphModule, node: fx.Node) -> bool:
    in_place = getattr(module_of(traced, node), "inplace", False) or node.kwargs.get("inplace")
    named_so = node.op == "call_method" and node.target.endswith("_")
    return bool(in_place) or named_so or node.target in (operator.iadd, operator.imul)


def replace_shuffles(graph: fx.Graph) -> None:
    """One operation for the usual four of a channel shuffle: (N, groups, C / groups, H, W),
    transposed, and flattened again."""
    for last in graph.find_nodes(op="call_method"):
        swap = last.args[0]
        if swap.target == "contiguous":
            swap = swap.args[0]
        if swap.target not in ("transpose", torch.transpose) or {*swap.args[1:]} != {1, 2}:
            continue
        first = swap.args[0]
        if not all(n.target in ("view", "reshape") for n in (first, last)) or len(first.args) != 6:
            continue
        outer = [(n.args[1], *n.args[-2:]) for n in (first, last)]  # N, H, W
        if outer[0] == outer[1] and len(last.args) == 5 and isinstance(first.args[2], int):
            with graph.inserting_before(last):
                shuffle = torch.channel_shuffle, (first.args[0], first.args[2])
                last.replace_all_uses_with(graph.call_function(*shuffle))


def drop_expansions(graph: fx.Graph) -> None:
    """`x * y.expand_as(x)` is `x * y`."""
    for node in graph.find_nodes(op="call_method", target="expand_as"):
        if all(FUNCTIONS.get(NAMES.get(user.target)) == Kind.MUL for user in node.users):
            node.replace_all_uses_with(node.args[0])


def check_nothing_is_shared(traced: fx.GraphModule) -> None:
    """A layer in two places has the channels of both: it cannot be cut for one of them."""
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for name, times in calls.items():
        if times > 1 and traced.get_submodule(name).state_dict():
            raise UserError(f"{name} is called {times} times: shared layers cannot be followed")
    seen: dict[int, str] = {}
    for name, parameter in traced.named_parameters(remove_duplicate=False):
        if seen.setdefault(id(parameter), name) != name:
            raise UserError(f"{name} is also {seen[id(parameter)]}: shared weights, not followed")
