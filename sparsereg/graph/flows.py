"""Forward through a traced network: the channels behind each kind of operation, and which gate
multiplies them. A rule that does not apply gives None: the operation is a barrier."""

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from sparsereg.graph import moves
from sparsereg.graph.nodes import ALWAYS_ZERO, NO_GATE, Edge, Flow, How, module_of, same, ungated
from sparsereg.graph.operations import Kind, kind_of

Sources = list[tuple[fx.Node, Flow]]  # the tensors that an operation reads, in order
Rule = Callable[[fx.GraphModule, fx.Node, Sources], Flow | None]


def shape_of(node: fx.Node) -> torch.Size:
    return node.meta["value"].shape


def constant_tensor(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    """A parameter of one value for each channel, (C,) or (C, 1, 1), can be cut."""
    axes = [axis for axis, size in enumerate(shape_of(node)) if size > 1]
    return Flow(ungated(shape_of(node)[axes[0]]), axes[0]) if len(axes) == 1 else None


def mix(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    """A convolution or linear layer: new channels, from those of the source that are not zero."""
    module, [(source, flow)] = module_of(traced, node), sources[:1]
    is_linear = isinstance(module, nn.Linear)
    dims = shape_of(node)
    axis = len(dims) - 1 if is_linear else 1
    if not is_linear and len(dims) != module.weight.dim():
        return None  # without a batch
    edge = Edge(source, How.OPEN if flow.axis == axis else How.ALL)
    return Flow(ungated(len(module.weight)), axis, edges=(edge,))


def grouped(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    [(source, flow)] = sources
    if flow.axis != 1 or flow.repeat != 1:
        return None
    module = module_of(traced, node)
    return Flow(ungated(len(module.weight)), 1, edges=(Edge(source, How.GROUPS),))


def elementwise(kept: bool) -> Rule:
    """Of one tensor; `kept`: zero stays zero."""

    def rule(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
        if len(sources) != 1 or sources[0][1].axis is None:
            return None
        [(source, flow)] = sources
        if shape_of(node) != shape_of(source):
            return None
        gates = flow.gates if kept else ungated(flow.width)
        return flow._replace(gates=gates, edges=(same(source, flow),))

    return rule


def over_positions(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    [(source, flow)] = sources[:1]
    if len(sources) != 1 or flow.axis != 1 or flow.repeat != 1:
        return None
    if shape_of(node)[:2] != shape_of(source)[:2]:
        return None
    return flow._replace(edges=(same(source, flow),))


def affine(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    """BatchNorm, or a depthwise convolution."""
    [(source, flow)] = sources
    if flow.axis != 1 or shape_of(node)[1] != shape_of(source)[1]:
        return None
    return flow._replace(gates=ungated(flow.width), edges=(same(source, flow),))


def reduce(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    """A mean or sum over some dimensions."""
    if len(sources) != 1 or sources[0][1].axis is None:
        return None
    [(source, flow)] = sources
    args, kwargs = moves.arguments(node)
    dims = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    if dims is None:
        return None
    count = len(shape_of(source))
    dims = {dim % count for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    if flow.axis in dims:
        return None
    gone = 0 if len(shape_of(node)) == count else sum(dim < flow.axis for dim in dims)
    return flow._replace(axis=flow.axis - gone, edges=(same(source, flow),))


def together(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    """An addition or multiplication of two tensors, or of one and a number."""
    is_sum = kind_of(traced, node) == Kind.ADD
    if len(sources) == 1:
        return with_number(node, sources, is_sum)
    main = main_source(sources)
    if len(sources) != 2 or main is None or is_division(node):
        return None
    axis, flow = main
    edges = [edge_to(source, other, axis, flow) for source, other in sources]
    if None in edges:
        return None
    own = [other for (_, other), edge in zip(sources, edges, strict=True) if edge.how == How.SAME]
    if is_sum:
        alone = len(own) == len(sources) and all(torch.equal(f.gates, own[0].gates) for f in own)
        gates = own[0].gates if alone else common(own, len(own) == len(sources))
    else:
        gates = first_gate(own)
    return Flow(gates, axis + len(shape_of(node)), flow.repeat, tuple(edges))


def with_number(node: fx.Node, sources: Sources, is_sum: bool) -> Flow | None:
    [(source, flow)] = sources
    if flow.axis is None or shape_of(node) != shape_of(source):
        return None
    first, second = (*node.args, *node.kwargs.values())[:2]
    if is_division(node) and (first is not source or "rounding_mode" in node.kwargs):
        return None
    number = second if first is source else first
    gates = flow.gates if not is_sum or number == 0 else ungated(flow.width)
    return flow._replace(gates=gates, edges=(same(source, flow),))


def is_division(node: fx.Node) -> bool:
    return "div" in getattr(node.target, "__name__", node.target)


def main_source(sources: Sources) -> tuple[int, Flow] | None:
    """The dimension of the channels, from the last, and the flow of a source that has them."""
    followed = [(f.axis - len(shape_of(s)), f) for s, f in sources if f.axis is not None]
    followed.sort(key=lambda place: place[1].width, reverse=True)
    return followed[0] if followed else None


def edge_to(source: fx.Node, flow: Flow, axis: int, main: Flow) -> Edge | None:
    """How an operation on channels along `axis` reads one of its tensors."""
    dims = shape_of(source)
    if flow.axis is not None and flow.axis - len(dims) == axis and flow.width == main.width:
        return same(source, flow) if flow.repeat == main.repeat else None
    has = dims[axis] if -axis <= len(dims) else 1
    if has == 1:
        return Edge(source, How.ALL)  # the same for all channels
    if has != main.width * main.repeat or flow.axis is not None or main.repeat != 1:
        return None
    return Edge(source, How.ALL, pick=True)


def common(flows: list[Flow], complete: bool) -> Tensor:
    """The gates that close a sum: those of all its sides."""
    if not complete:
        return ungated(flows[0].width)
    gates = flows[0].gates
    for flow in flows[1:]:
        equal = torch.where(gates == flow.gates, gates, NO_GATE)
        equal = torch.where(gates == ALWAYS_ZERO, flow.gates, equal)
        gates = torch.where(flow.gates == ALWAYS_ZERO, gates, equal)
    return gates


def first_gate(flows: list[Flow]) -> Tensor:
    """The gates that close a product: those of either side."""
    gates = flows[0].gates
    for flow in flows[1:]:
        gates = torch.where(gates == NO_GATE, flow.gates, gates)
    return gates


def cat(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    """Joined along the channels; or along another dimension, where all have the same ones."""
    args, kwargs = moves.arguments(node)
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    count = len(shape_of(node))
    is_new = getattr(node.target, "__name__", "") == "stack"
    followed = [(s, f) for s, f in sources if f.axis is not None]
    if not followed:
        return None
    dim %= count
    axes = {f.axis for _, f in followed}
    if is_new or axes != {dim}:
        return joined(sources, axes, dim if is_new else count)
    if any(flow.repeat != 1 for _, flow in followed):
        return None
    pieces, edges, start = [], [], 0
    widths = [shape_of(source)[dim] for source, _ in sources]
    for (source, flow), width in zip(sources, widths, strict=True):
        order = torch.full((sum(widths),), -1)
        inside = torch.zeros(width, dtype=torch.long) if flow.axis is None else torch.arange(width)
        order[start : start + width] = inside
        pieces.append(flow.gates.expand(width))
        edges.append(Edge(source, How.SAME, order))
        start += width
    return Flow(torch.cat(pieces), dim, 1, tuple(edges))


def joined(sources: Sources, axes: set[int], new: int) -> Flow | None:
    """Of tensors with the same channels."""
    flows = [flow for _, flow in sources]
    shapes = {(flow.width, flow.repeat) for flow in flows}
    if len(axes) != 1 or len(shapes) != 1 or any(flow.axis is None for flow in flows):
        return None
    axis = flows[0].axis + (flows[0].axis >= new)
    edges = tuple(same(source, flow) for source, flow in sources)
    return Flow(common(flows, True), axis, flows[0].repeat, edges)


def move(traced: fx.GraphModule, node: fx.Node, sources: Sources) -> Flow | None:
    """Elements in other places. `node.meta["move"]` tells the cut what to do."""
    origin, steps = origin_of(node)
    known = dict(sources)
    if origin not in known or known[origin].axis is None or len(sources) > 2:
        return None
    flow = known[origin]
    found = moves.follow(traced, steps, flow, shape_of(origin))
    if found is None:
        return None
    node.meta["move"] = found
    gates = torch.where(found.order < 0, ALWAYS_ZERO, flow.gates[found.order.clamp(min=0)])
    edge = Edge(origin, How.SAME, found.order)
    return Flow(gates, found.axis, found.repeat, (edge,))


def origin_of(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The tensor whose elements these are, with the steps from there."""
    steps = [node]
    while steps[0].all_input_nodes:
        source = steps[0].all_input_nodes[0]
        if not source.meta.get("scattered"):
            return source, steps
        steps.insert(0, source)
    return node, [node]


RULES: dict[Kind, Rule] = {
    Kind.CONSTANT_TENSOR: constant_tensor,
    Kind.MIX: mix,
    Kind.GROUPED: grouped,
    Kind.SCALE: elementwise(True),
    Kind.ZERO: elementwise(True),
    Kind.CONSTANT: elementwise(False),
    Kind.POOL: over_positions,
    Kind.AFFINE: affine,
    Kind.REDUCE: reduce,
    Kind.ADD: together,
    Kind.MUL: together,
    Kind.CAT: cat,
    Kind.MOVE: move,
}
