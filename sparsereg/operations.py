"""The traced network, and what each of its operations does to channels."""

import operator
from collections import Counter
from pkgutil import resolve_name

import torch
from torch import fx, nn
from torchvision.ops import StochasticDepth

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.layers import BatchNorm, ChannelScale, ChannelSelect, ChannelShift
from sparsereg.trace_errors import place_of, stopped_at

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm)

# The kinds of operations. All but MIX, GROUPED, CAT, ADD, MUL, SELECT and FLATTEN keep every
# channel to itself.
INPUT, OUTPUT, SIZE = "input", "output", "size"
MIX = "mix"  # every output channel depends on every input channel
GROUPED = "grouped"  # a convolution that mixes within groups; it keeps all its channels, or none
SCALE = "scale"  # f(c·x) = c·f(x) for c > 0, and f(0) = 0
ZERO = "zero"  # f(0) = 0
CONSTANT = "constant"  # f(0) is a constant
AFFINE = "affine"  # the same, with parameters for each channel
MUL = "mul"  # of two tensors, channel by channel, as in squeeze-excitation
SPLIT, SELECT = "split", "select"  # a tuple of parts; channels of the input in some order
GATE, CAT, ADD, FLATTEN = "gate", "cat", "add", "flatten"
UNFLATTEN = "unflatten"  # (N, C) to (N, C, 1, 1)

MODULES = {
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d), SCALE),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, ChannelScale), SCALE),
    **dict.fromkeys((nn.AdaptiveMaxPool2d, nn.ZeroPad2d, StochasticDepth), SCALE),
    **dict.fromkeys((nn.GELU, nn.Tanh, nn.SiLU, nn.ELU, nn.ReLU6, nn.Hardswish, nn.Mish), ZERO),
    **dict.fromkeys((nn.Sigmoid, nn.Hardsigmoid), CONSTANT),
    **dict.fromkeys((*BATCH_NORMS, ChannelShift), AFFINE),
    **dict.fromkeys((nn.ChannelShuffle, ChannelSelect), SELECT),
    nn.Flatten: FLATTEN,
    nn.Linear: MIX,
    nn.Conv2d: MIX,  # or AFFINE, if depthwise, or GROUPED
    L0Gate: GATE,
}
FUNCTIONS = {  # by name, because some of torch's functions do not know theirs
    **dict.fromkeys(("torch.relu", "torch.nn.functional.relu"), SCALE),
    **dict.fromkeys(("torch.nn.functional.leaky_relu", "torch.nn.functional.max_pool2d"), SCALE),
    **dict.fromkeys(("torch.nn.functional.dropout", "torch.nn.functional.dropout2d"), SCALE),
    "torch.nn.functional.avg_pool2d": SCALE,
    "torch.nn.functional.adaptive_avg_pool2d": SCALE,
    "torch.nn.functional.adaptive_max_pool2d": SCALE,
    **dict.fromkeys(("torch.nn.functional.gelu", "torch.nn.functional.silu"), ZERO),
    **dict.fromkeys(("torch.nn.functional.hardswish", "torch.nn.functional.relu6"), ZERO),
    "torch.nn.functional.elu": ZERO,
    "torch.tanh": ZERO,
    **dict.fromkeys(("torch.sigmoid", "torch.nn.functional.hardsigmoid"), CONSTANT),
    **dict.fromkeys(("_operator.add", "_operator.iadd", "torch.add"), ADD),
    **dict.fromkeys(("_operator.mul", "_operator.imul", "torch.mul"), MUL),
    **dict.fromkeys(("builtins.getattr", "_operator.getitem"), SIZE),
    "torch.chunk": SPLIT,
    "torch.channel_shuffle": SELECT,
    "torch.cat": CAT,
    "torch.flatten": FLATTEN,
    "torch.mean": FLATTEN,  # over positions; or SCALE, if these stay as 1x1
}
NAMES = {resolve_name(name): name for name in FUNCTIONS}
METHODS = {
    **dict.fromkeys(("relu", "contiguous"), SCALE),
    **dict.fromkeys(("flatten", "view", "reshape", "mean"), FLATTEN),
    **{"tanh": ZERO, "add": ADD, "add_": ADD, "size": SIZE, "chunk": SPLIT},
    **{"sigmoid": CONSTANT, "mul": MUL, "mul_": MUL},
}
POOLS = ("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "ZeroPad2d")


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
        if all(FUNCTIONS.get(NAMES.get(user.target)) == MUL for user in node.users):
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


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(node.target) if node.op == "call_module" else None


def kind_of(traced: fx.GraphModule, node: fx.Node) -> str:
    """One of the kinds above.

    Raises:
        UserError: names an operation that is none of them.
    """
    module = module_of(traced, node)
    kind = {
        "placeholder": INPUT,
        "output": OUTPUT,
        # exactly these types: a subclass may compute something else
        "call_module": MODULES.get(type(module)),
        "call_function": FUNCTIONS.get(NAMES.get(node.target)),
        "call_method": METHODS.get(node.target),
    }.get(node.op)
    if isinstance(module, nn.Conv2d) and kind and module.groups > 1:
        depthwise = module.groups == module.in_channels == module.out_channels
        kind = AFFINE if depthwise else GROUPED
    if node.target is operator.getitem and takes_part(node):
        kind = SELECT
    if kind == MUL and any(isinstance(a, int | float) and a > 0 for a in node.args):
        kind = SCALE
    if node.target in ("view", "reshape") and node.args[3:] == (1, 1):
        kind = UNFLATTEN
    if node.target in ("mean", torch.mean) and True in (*node.args[2:], node.kwargs.get("keepdim")):
        kind = SCALE
    if kind is None or not takes_channels(traced, node, kind):
        refuse(traced, node)
    return kind


def takes_channels(traced: fx.GraphModule, node: fx.Node, kind: str) -> bool:
    """Do the arguments make it the operation on channels that its name suggests?"""
    module, arguments = module_of(traced, node), [*node.args, *node.kwargs.values()]
    if kind == OUTPUT:
        return isinstance(node.args[0], fx.Node)
    if kind == SIZE:  # as in x.view(x.size(0), -1)
        return arguments[1:] in (["shape"], [], [0], [1])
    if kind == CAT:
        return (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")) == 1
    if kind in (ADD, MUL):
        return len(node.args) == 2 and all(isinstance(a, fx.Node) for a in arguments)
    if kind == SPLIT:
        return (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")) == 1
    if node.target in ("mean", torch.mean):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return {*dims} in ({2, 3}, {-1, -2}) if isinstance(dims, list | tuple) else False
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in ("view", "reshape"):
        channels = (-1,) if kind == FLATTEN else ()
        is_right = node.args[2] in channels or is_number_of_channels(node.args[2])
        return len(node.args) == (3 if kind == FLATTEN else 5) and is_right
    if kind == FLATTEN:
        return arguments[1:] == [1]
    return True


def is_number_of_channels(argument: object) -> bool:
    """x.size(1), x.shape[1] or the second of x.size()."""
    if not isinstance(argument, fx.Node) or argument.args[1:] != (1,):
        return False
    return argument.target == "size" or argument.target is operator.getitem


def takes_part(node: fx.Node) -> bool:
    """Is it one of the parts of a split, or `x[:, first:last]`?"""
    source, index = node.args
    if isinstance(index, int):
        return source.target in ("chunk", torch.chunk)
    if not isinstance(index, tuple) or [*map(type, index)] != [slice, slice]:
        return False
    bounds = index[1].start, index[1].stop, index[1].step
    return index[0] == slice(None) and not any(isinstance(b, fx.Node) for b in bounds)


def refuse(traced: fx.GraphModule, node: fx.Node, detail: str = "") -> None:
    """Raise UserError that names the operation."""
    if node.op == "call_module":
        module = module_of(traced, node)
        what = f"{node.target} ({type(module).__name__}({module.extra_repr()}))"
    else:
        what = f"{getattr(node.target, '__name__', node.target)} ({node.format_node()})"
    raise UserError(f"channels cannot be followed through {what}{place_of(node)}{detail}")
