"""The traced network, and what each of its operations does to channels."""

from collections import Counter
from pkgutil import resolve_name

from torch import fx, nn

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.layers import BatchNorm, ChannelScale

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm)

# The kinds of operations. All but MIX, CAT, ADD and FLATTEN keep every channel to itself.
INPUT, OUTPUT, SIZE = "input", "output", "size"
MIX = "mix"  # every output channel depends on every input channel
SCALE = "scale"  # f(c·x) = c·f(x) for c > 0, and f(0) = 0
ZERO = "zero"  # f(0) = 0
AFFINE = "affine"  # f(0) is a constant
GATE, CAT, ADD, FLATTEN = "gate", "cat", "add", "flatten"

MODULES = {
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d), SCALE),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, ChannelScale), SCALE),
    **dict.fromkeys((nn.GELU, nn.Tanh, nn.SiLU, nn.ELU, nn.ReLU6, nn.Hardswish), ZERO),
    **dict.fromkeys(BATCH_NORMS, AFFINE),
    nn.Flatten: FLATTEN,
    nn.Linear: MIX,
    L0Gate: GATE,
}
FUNCTIONS = {  # by name, because some of torch's functions do not know theirs
    **dict.fromkeys(("torch.relu", "torch.nn.functional.relu"), SCALE),
    **dict.fromkeys(("torch.nn.functional.leaky_relu", "torch.nn.functional.max_pool2d"), SCALE),
    "torch.nn.functional.avg_pool2d": SCALE,
    "torch.nn.functional.adaptive_avg_pool2d": SCALE,
    **dict.fromkeys(("torch.nn.functional.gelu", "torch.nn.functional.silu"), ZERO),
    "torch.tanh": ZERO,
    **dict.fromkeys(("_operator.add", "_operator.iadd", "torch.add"), ADD),
    **dict.fromkeys(("builtins.getattr", "_operator.getitem"), SIZE),
    "torch.cat": CAT,
    "torch.flatten": FLATTEN,
}
NAMES = {resolve_name(name): name for name in FUNCTIONS}
METHODS = {
    **dict.fromkeys(("relu", "contiguous"), SCALE),
    **dict.fromkeys(("flatten", "view", "reshape"), FLATTEN),
    **{"tanh": ZERO, "add": ADD, "add_": ADD, "size": SIZE},
}


class ChannelTracer(fx.Tracer):
    """Keeps gates and layers whole, subclasses of torch's own too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        known = (*MODULES, *CONVOLUTIONS)
        return isinstance(module, known) or super().is_leaf_module(module, name)


def trace(net: nn.Module) -> fx.GraphModule:
    """The graph of `net` in its present mode; it shares the modules of `net`.

    Raises:
        UserError: the Python code depends on the values of tensors, or a layer is used twice.
    """
    try:
        graph = ChannelTracer().trace(net)
    except (fx.proxy.TraceError, TypeError) as error:
        raise UserError(f"{type(net).__name__} cannot be traced: {error}") from error
    for node in graph.find_nodes(op="placeholder"):
        if not node.users:  # an optional argument
            graph.erase_node(node)
    traced = fx.GraphModule(net, graph)
    graph.eliminate_dead_code()
    traced.recompile()
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for name, times in calls.items():
        if times > 1 and traced.get_submodule(name).state_dict():
            raise UserError(f"{name} is called {times} times: shared layers cannot be followed")
    return traced


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(node.target) if node.op == "call_module" else None


def kind_of(traced: fx.GraphModule, node: fx.Node) -> str:
    """One of the kinds above.

    Raises:
        UserError: names an operation that is none of them.
    """
    if node.op in ("placeholder", "output"):
        return INPUT if node.op == "placeholder" else OUTPUT
    module = module_of(traced, node)
    if node.op == "call_function":
        kind = FUNCTIONS.get(NAMES.get(node.target))
    elif node.op == "call_method":
        kind = METHODS.get(node.target)
    elif isinstance(module, CONVOLUTIONS):
        depthwise = module.groups == module.in_channels == module.out_channels
        kind = MIX if module.groups == 1 else AFFINE if depthwise else None
    else:
        kind = next((kind for known, kind in MODULES.items() if isinstance(module, known)), None)
    if kind is None or not takes_channels(node, kind, module):
        refuse(traced, node)
    return kind


def takes_channels(node: fx.Node, kind: str, module: nn.Module | None) -> bool:
    """Do the arguments make it the operation on channels that its name suggests?"""
    if kind == CAT:
        return (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")) == 1
    if kind == ADD:
        return len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in ("view", "reshape"):
        return len(node.args) == 3 and node.args[2] == -1
    if kind == FLATTEN:
        return [*node.args[1:], *node.kwargs.values()] == [1]
    return True


def refuse(traced: fx.GraphModule, node: fx.Node, detail: str = "") -> None:
    """Raise UserError that names the operation."""
    if node.op == "call_module":
        module = module_of(traced, node)
        what = f"{node.target} ({type(module).__name__}({module.extra_repr()}))"
    else:
        what = f"{getattr(node.target, '__name__', node.target)} ({node.format_node()})"
    raise UserError(f"channels cannot be followed through {what}{detail}")
