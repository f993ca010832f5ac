"""A node of a traced network: its module, its channels and how they depend on those of others, the
line of code it comes from, and how to refuse it."""

import inspect
import linecache
import traceback
from enum import Enum, auto
from keyword import iskeyword
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.layers import read_as_torch_has_it

NO_GATE = 0  # gates count from 1
CODE = "code"  # in a node's meta: file and line of the network's code
ALWAYS_ZERO = -1  # in place of a gate: a channel that is padding
AUTOCAST = ("cpu", "cuda")  # devices that compute in another precision within torch.autocast
EMPTY = fx.GraphModule(nn.Module(), fx.Graph())  # has the attributes that no layer can be
HERE = Path(__file__).parent
# code that is not the network's: torch's, and what traces it
NOT_THEIRS = tuple(map(str, (Path(torch.__file__).parent, HERE, HERE.with_name("recording"))))


class How(Enum):
    """What an operation reads of the channels of a tensor."""

    ALL = auto()  # each, also one that is zero
    OPEN = auto()  # each that is not zero
    SAME = auto()  # for each of its own channels one
    GROUPS = auto()  # for each of its own groups of channels one group, whole
    FEATURES = auto()  # for each gated feature its channel


class Edge(NamedTuple):
    """From an operation to a tensor that it reads.

    `order`, for SAME: which channel of the source each channel of the operation is, -1 for none,
    (C,). `pick`: the source, of which all is there, has the same channels, and gives those that
    remain.
    """

    source: fx.Node
    how: How
    order: Tensor | None = None
    pick: bool = False


class Flow(NamedTuple):
    """The channels of a tensor.

    `gates`: which gate multiplies each, (C,). `axis`: their dimension; None for a tensor that is
    one whole, as if it had one channel. `repeat`: entries of each channel along the axis, its
    positions behind a flattening.
    """

    gates: Tensor
    axis: int | None = None
    repeat: int = 1
    edges: tuple[Edge, ...] = ()

    @property
    def width(self) -> int:
        return len(self.gates)


def whole(sources: list[fx.Node]) -> Flow:
    """Of an operation that reads everything, and gives a whole."""
    edges = tuple(Edge(source, How.ALL) for source in dict.fromkeys(sources))
    return Flow(torch.tensor([NO_GATE]), edges=edges)


def ungated(width: int) -> Tensor:
    return torch.full((width,), NO_GATE)


def same(source: fx.Node, flow: Flow) -> Edge:
    """Each channel of the operation is that of the source."""
    return Edge(source, How.SAME, torch.arange(flow.width))


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(node.target) if node.op == "call_module" else None


def stopped_at(error: BaseException, net: nn.Module) -> str:
    """in layer1.0 (Block), nets.py line 12, `if x.sum() > 0:`: the last line of the network's
    own forward that ran before the error."""
    names = {id(module): name for name, module in net.named_modules()}
    module, place = None, ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith(NOT_THEIRS) and id(owner_of(frame)) in names:
            module = owner_of(frame)
        if module is not None and not file.startswith(NOT_THEIRS):  # or what its forward calls
            place = f"{Path(file).name} line {line}, `{linecache.getline(file, line).strip()}`"
    if module is None:
        return ""
    return f" in {names[id(module)] or 'forward'} ({type(module).__name__}), {place}"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def owner_of(frame: FrameType) -> object:
    """The first argument of the code that runs, `self` of a method."""
    return frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))


def module_at(error: BaseException, net: nn.Module, known: set[str]) -> str | None:
    """The innermost submodule, other than those known, in whose code the error was raised."""
    names = {id(module): name for name, module in net.named_modules()}
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = names.get(id(owner_of(frame)))
        if name and frame.f_code.co_name == "forward" and name not in known:
            found = name
    return found


def place_of(node: fx.Node) -> str:
    """The same for an operation of the graph, if the graph knows its origin."""
    if not node.meta.get(CODE):
        return ""
    file, line = node.meta[CODE]
    stack = list((node.meta.get("nn_module_stack") or {"": ("forward", None)}).values())
    own = stack[:-1] if node.op == "call_module" else stack  # the last is what is called
    name = own[-1][0] if own else "forward"
    code = linecache.getline(file, line).strip()
    return f" in {name or 'forward'}, {Path(file).name} line {line}, `{code}`"


def code_line(until: CodeType) -> tuple[str, int] | None:
    """File and line of the network's code that runs, called by that of `until`."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not until:
        if not frame.f_code.co_filename.startswith((*NOT_THEIRS, "<")):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def refuse(traced: fx.GraphModule, node: fx.Node, detail: str = "") -> None:
    """Raise UserError that names the operation."""
    if node.op == "call_module":
        module = module_of(traced, node)
        what = f"{node.target} ({type(module).__name__}({module.extra_repr()}))"
    else:
        what = f"{getattr(node.target, '__name__', node.target)} ({node.format_node()})"
    raise UserError(f"channels cannot be followed through {what}{place_of(node)}{detail}")


def check_names(graph: fx.Graph) -> None:
    """The graph becomes Python code, of a module of torch.fx."""
    for node in graph.nodes:
        words = str(node.target).split(".") if node.op in ("call_module", "get_attr") else []
        for word in words:
            if iskeyword(word) or hasattr(EMPTY, word):
                whose = "Python" if iskeyword(word) else "torch.fx"
                where = place_of(node)
                raise UserError(f"{node.target}{where} is named by a word of {whose}: rename it")


def check_modules(net: nn.Module) -> None:
    """Raise UserError where a module is no Python code, or a hook may change what it reads or
    gives, or a gradient."""
    for name, module in net.named_modules():
        what = f"{name or 'the network'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{what} is TorchScript: use the module that it was made from")
        if hasattr(module, "_orig_mod"):  # of torch.compile
            raise UserError(f"{what} is compiled: insert gates first, and compile what comes out")
    if "forward" in vars(net):
        raise UserError(
            f"the forward of the network ({type(net).__name__}) is not that of its class"
        )
    for name, parameter in net.named_parameters():
        if parameter._backward_hooks:
            raise UserError(f"{name} has a hook on its gradient: register it behind the gates")
    for name, module in net.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        hooks = [hook for hook in hooks if hook is not read_as_torch_has_it]  # the same numbers
        if hooks and not isinstance(module, L0Gate):
            hook = getattr(hooks[0], "__name__", type(hooks[0]).__name__)
            raise UserError(
                f"{name or 'the network'} ({type(module).__name__}) has a hook ({hook}), which may "
                "change what it computes: remove it, or use torch.nn.utils.parametrizations"
            )


def check_context(target: Any, args: tuple) -> None:
    """Raise TraceError for what holds while the code runs, and is not in a graph."""
    if not torch.is_grad_enabled() or (target is getattr and args[1] == "data"):
        raise TraceError(
            "it keeps gradients back (torch.no_grad, .data, an autograd.Function), without which "
            "no gate can learn: set requires_grad=False on parameters that are not to learn"
        )
    if any(torch.is_autocast_enabled(device) for device in AUTOCAST):
        raise TraceError(
            "it computes in another precision (torch.autocast): leave that to whoever calls it"
        )
