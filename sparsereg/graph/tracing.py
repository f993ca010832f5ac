"""A network as a graph of operations (torch.fx), with the shapes that they have for an example."""

import copy
import operator

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # torch has no public name for it

from sparsereg.errors import UserError
from sparsereg.graph.nodes import (
    check_modules,
    check_names,
    first_line,
    module_at,
    module_of,
    refuse,
    stopped_at,
)
from sparsereg.graph.operations import MODULES, is_layer
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.gated import GatedNetwork
from sparsereg.recording.layers import DROPOUTS, behind, computing_layers, simplify
from sparsereg.recording.rewrites import hold_shape, replace_in_place, use_results
from sparsereg.recording.values import ValueTracer

OF_OTHERS = (nn.Sequential, nn.TransformerEncoder, nn.TransformerEncoderLayer)  # made of layers
SIZES = (32, 8, 224, 64, 16, 28, 96, 128, 256, 299)  # of images, tried where there is no example
GROWTH = 32  # pixels by which another image differs
CONSTANT = "_tensor_constant"  # what torch.fx names tensors that the code has made


def trace(net: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """The graph of `net` in its present mode; it shares the modules of `net`, some of which get the
    class of torch's layer that computes the same.

    Every node has in `meta["value"]` its value for the example: of tensors shape and dtype alone.

    Args:
        net: the network, a private copy.
        example: images that it takes; None: it is known (`GatedNetwork`), or found by trying.

    Raises:
        UserError: the Python code depends on the values of tensors, or does what no graph can do.
    """
    if isinstance(net, GatedNetwork):
        traced = fx.GraphModule(net.computed, copy.deepcopy(net.graph))
        if example is not None and example.shape[1:] != net.example_images.shape[1:]:
            set_values(traced, example_for(net, example))
        if not net.training:
            open_up(traced)
        return traced
    if isinstance(net, fx.GraphModule) and has_values(net):
        return net
    check_modules(net)
    simplify(net)
    example = example_for(net, example)
    traced, decided = record(net, example, opaque=set())
    check_random(net, traced)
    if decided:
        check_batches(net, example, traced)
        if not same_elsewhere(net, example, traced):
            hold_shape(traced, example, net)
    return traced


def has_values(traced: fx.GraphModule) -> bool:
    return all("value" in node.meta for node in traced.graph.nodes if node.op != "output")


def set_values(traced: fx.GraphModule, example: Tensor) -> None:
    """Those for another example."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    class Values(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            result = super().run_node(node)
            node.meta["value"] = without_data(result)
            return result

    with fake, torch.no_grad():
        Values(traced).run(fake.from_tensor(example))


def example_for(net: nn.Module, example: Tensor | None) -> Tensor:
    """Two images like those of the example, in the precision of the network."""
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    if example is not None:
        shape = tuple(example.shape[1:])
        return torch.zeros(2, *shape, dtype=dtype)
    if shape := getattr(net, "meta", {}).get("image_shape"):
        return torch.zeros(2, *shape, dtype=dtype)
    return guess_example(net, dtype)


def guess_example(net: nn.Module, dtype: torch.dtype) -> Tensor:
    first = next((m for m in net.modules() if is_layer(m)), None)
    channels = getattr(first, "in_channels", 3)
    trial, errors = copy.deepcopy(net), []
    trial.eval()
    for size in SIZES:
        images = torch.zeros(2, channels, size, size, dtype=dtype)
        try:
            with torch.no_grad():
                trial(images)
            return images
        except Exception as error:  # whatever the network's code raises for this size
            errors.append(error)
    raise UserError(
        f"{type(net).__name__} takes no images of {', '.join(map(str, SIZES))} pixels"
        f"{stopped_at(errors[0], net)}: {first_line(errors[0])}. Give an example"
    )


def record(
    net: nn.Module,
    example: Tensor,
    opaque: set[str] | None,
    computing: dict[nn.Module, nn.Module] | None = None,
) -> tuple[fx.GraphModule, bool]:
    """The graph, and whether a number that may depend on the size of the image decided about it.

    A module whose code cannot be recorded becomes one operation, and is added to `opaque`; None:
    there is no such module. `computing`: the `computing_layers` of `net`, where they are known.
    """
    computing = computing_layers(net) if computing is None else computing

    def is_leaf(module: nn.Module, name: str) -> bool:
        if name in (opaque or ()) or (type(module) in MODULES and "forward" not in vars(module)):
            return True
        if "forward" in vars(module):
            return False
        if is_layer(module):
            return module in computing
        return module.__module__.startswith("torch.nn") and not isinstance(module, OF_OTHERS)

    first = None
    while True:
        tracer = ValueTracer(example, is_leaf, behind, computing)
        try:
            graph = tracer.trace(net)
            break
        except Exception as error:  # from the network's own code, which may raise anything
            first = first or error
            name = None if opaque is None else module_at(error, net, opaque)
            if name is None or any(
                isinstance(m, L0Gate) for m in net.get_submodule(name).modules()
            ):
                where = stopped_at(first, net)
                why = first_line(first)
                raise UserError(f"{type(net).__name__} cannot be traced{where}: {why}") from first
            opaque.add(name)
    for node in graph.nodes:
        node.meta["value"] = without_data(node.meta.get("value"))
        node.meta.pop("is_wrapped", None)  # torch.fx would wrap torch's own functions
    check_names(graph)
    keep_constants(net, graph)
    traced = fx.GraphModule(net, graph)
    traced.meta["random"], traced.meta["changed"] = tracer.random, tracer.changed
    replace_in_place(traced)
    graph.eliminate_dead_code()
    traced.recompile()
    return traced, tracer.decided


def open_up(traced: fx.GraphModule) -> None:
    """Put in place of modules that are one operation, because they do something else in training,
    what they do in eval mode.

    Raises:
        UserError: they depend on values in eval mode too, or on the number of images.
    """
    for node in list(traced.graph.nodes):
        module = module_of(traced, node)
        if module is None or type(module) in MODULES or is_layer(module):
            continue
        if module.__module__.startswith("torch.nn") and not isinstance(module, OF_OTHERS):
            continue  # whole, in training too
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            refuse(traced, node, ": its code looks at values, and it reads several tensors")
        value = node.args[0].meta["value"]
        images = torch.zeros(value.shape, dtype=value.dtype)
        inner, _ = record(module, images, opaque=None)
        check_batches(module, images, inner)
        before = {*traced.graph.nodes}
        [source] = inner.graph.find_nodes(op="placeholder")
        with traced.graph.inserting_before(node):
            result = traced.graph.graph_copy(inner.graph, {source: node.args[0]})
        for new in traced.graph.nodes:
            if new not in before and new.op in ("call_module", "get_attr"):
                new.target = f"{node.target}.{new.target}"
        use_results(traced, node, result)
        traced.graph.erase_node(node)
    traced.recompile()


def keep_constants(net: nn.Module, graph: fx.Graph) -> None:
    """As buffers, which move with the network, those that the graph uses."""
    used = {node.target for node in graph.find_nodes(op="get_attr")}
    for name in [name for name in vars(net) if name.startswith(CONSTANT)]:
        value = net.__dict__.pop(name)
        if name in used:
            net.register_buffer(name, value, persistent=False)


def without_data(value: object) -> object:
    """Shapes in place of tensors."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, tuple | list):
        return [without_data(item) for item in value]
    return value


def signature(traced: fx.GraphModule) -> dict[fx.Node, str]:
    """What each operation does, to be compared with those of another graph. Dropouts, which code
    may leave out in eval mode, are another matter, see `surgery.modes`."""
    lines: dict[fx.Node, str] = {}
    names: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        if node.target in DROPOUTS:
            names[node] = names[node.args[0] if node.args else node.kwargs["input"]]
            continue
        names[node] = f"%{len(lines)}"
        target = node.target
        if node.op == "get_attr" and CONSTANT in target:  # whose number depends on earlier ones
            target = operator.attrgetter(target)(traced).tolist()
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), names.__getitem__)
        lines[node] = f"{node.op} {target} {args} {kwargs}"
    return lines


def check_random(net: nn.Module, traced: fx.GraphModule) -> None:
    """Raise UserError if code has drawn random numbers, which a graph would keep, in eval mode."""
    for name in traced.meta["random"]:
        where = f"{name} ({type(net.get_submodule(name)).__name__})" if name else type(net).__name__
        raise UserError(f"{where} draws random numbers in eval mode: what it computes is not fixed")


def check_batches(net: nn.Module, example: Tensor, traced: fx.GraphModule) -> None:
    """Raise UserError if the graph is another one for one image, or for three."""
    for images in (example[:1], torch.cat([example, example[:1]])):
        check_batch(net, images, traced)


def check_batch(
    net: nn.Module, images: Tensor, traced: fx.GraphModule, opaque: set[str] | None = None
) -> None:
    """Raise UserError if the graph is another one for so many images."""
    other, _ = record(net, images, opaque)
    pairs = zip(signature(traced).items(), signature(other).values(), strict=False)
    for (node, ours), theirs in pairs:
        if ours != theirs:
            why = ": it depends on the number of images; x.size(0) would follow it"
            refuse(traced, node, why)


def same_elsewhere(net: nn.Module, example: Tensor, traced: fx.GraphModule) -> bool:
    """Is the graph the same for images of another size?"""
    larger = torch.zeros(*example.shape[:2], *(n + GROWTH for n in example.shape[2:]))
    try:
        other, _ = record(net, larger.to(example), opaque=None)
    except UserError:
        return False
    return [*signature(other).values()] == [*signature(traced).values()]
