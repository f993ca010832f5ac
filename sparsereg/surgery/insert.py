"""Gates in any convolutional network: one on every group of channels that can be removed."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch

from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.nodes import check_modules, module_of, refuse
from sparsereg.graph.operations import is_layer
from sparsereg.model.basic_l0_blocks import GATES, L0Gate, SharedGates
from sparsereg.model.gated import GatedNetwork
from sparsereg.recording.layers import copied
from sparsereg.recording.rewrites import free_name
from sparsereg.surgery.coupling import Coupling, Read, couple, input_gate, start_anew
from sparsereg.surgery.modes import trace_both_modes
from sparsereg.surgery.places import Place, find_places, put_gate
from sparsereg.surgery.verify import verify

ENOUGH = 0.2  # highest reachable sparsity below which there is a warning
Patterns = str | Sequence[str]


def insert_gates(
    net: nn.Module,
    example: Tensor,
    droprate_init: float = 0.5,
    include: Patterns = "*",
    exclude: Patterns = (),
    temperature: float = 2 / 3,
    sampling: str = "per_sample",
    gate_inputs: Patterns = (),
    coupled: bool = True,
    behind_barriers: bool = True,
    show: bool = True,
) -> GatedNetwork:
    """`net` with an `L0Gate` on every group of channels that can be removed.

    That are the output channels of a convolution or linear layer, with its BatchNorm, activation
    and depthwise convolution, if the gate behind them is all that other layers read them through;
    channels of residual streams, concatenations and groups, which several layers write and read,
    with a gate that they share (`coupling`); and what a layer reads of a norm's or attention's
    result, which is there as a whole. It ends with a comparison of the gated and of a
    cut network with `net` itself, on the example and noise like it.
    Names of parameters stay: state dicts of `net` fit, but for the `gates.….qz_loga`.

    Args:
        net: a classifier; not changed.
        example: images that it takes, (N, C, H, W).
        droprate_init, temperature, sampling: see `L0Gate`. Trained weights need open gates, 0.05.
        include, exclude: names of layers that may, or may not, get gates, with * and ?.
        gate_inputs: names of linear layers whose every input gets a gate too, `gates.NAME_inputs`,
            where the gates of the channels before it do not close each of them by itself.
        coupled: shared gates too.
        behind_barriers: gates behind norms and attention too, `gates.NAME_inputs` of the layer that
            reads there.
        show: print which layers have gates, why the others do not, and what they can reach.

    Raises:
        UserError: names what of the network, with its line, cannot be traced or followed; or a
            pattern that fits no layer.
    """
    if not isinstance(example, Tensor):
        raise UserError("insert_gates(net, example): images that the network takes, (N, C, H, W)")
    settings = droprate_init, include, exclude, temperature, sampling, gate_inputs
    gated, places = place_gates(net, *settings, coupled, behind_barriers, example)
    reach = verify(net, gated, example)
    if show:
        Console().print(table_of(places))
    if show or min(reach.values()) < ENOUGH:
        Console().print(reach_line(reach))
    return gated


def place_gates(
    net: nn.Module,
    droprate_init: float = 0.5,
    include: Patterns = "*",
    exclude: Patterns = (),
    temperature: float = 2 / 3,
    sampling: str = "per_sample",
    gate_inputs: Patterns = (),
    coupled: bool = False,
    behind_barriers: bool = False,
    example: Tensor | None = None,
) -> tuple[GatedNetwork, list[Place]]:
    """What `insert_gates` does, without its last look, `verify`; `example`: see `trace`."""
    if any(isinstance(module, L0Gate) for module in net.modules()):
        raise UserError(f"{type(net).__name__} has gates already")
    check_modules(net)  # a copy does not have all hooks
    check_gate_names(net)
    modes = {name: module.training for name, module in net.named_modules()}
    net = copied(net)
    traced, example = trace_both_modes(net, example)
    include, exclude = as_list(include), as_list(exclude)
    places = find_places(traced, include, exclude, as_list(gate_inputs))

    def new_gate(width: int, axis: int = 1) -> L0Gate:
        return L0Gate(width, droprate_init, temperature, sampling, axis)

    def may(name: str) -> bool:
        return is_chosen(name, include, exclude)

    for place in places:
        if place.why_not is None:
            gate = new_gate(place.width, place.axis)
            add_module(net, f"{GATES}.{place.gate}", gate)
            put_gate(traced, place, gate)
    if coupled or behind_barriers:
        graph = ChannelGraph(traced)
        found = couple(graph, may) if coupled else Coupling()
        if behind_barriers:
            start_anew(graph, may, found)
        gates = {f"{GATES}.{name}": new_gate(width) for name, width in found.widths.items()}
        for name, gate in gates.items():
            add_module(net, name, gate)
        for read in found.reads:
            put_read(net, traced, read, gates)
        places = [each for place in places for each in with_coupling(place, found)]
    if all(place.why_not is not None for place in places):
        raise UserError(
            f"{type(net).__name__} has no channels that can be removed: "
            + "; ".join(dict.fromkeys(f"{place.why_not}" for place in places[:3]))
        )
    for name, module in net.named_modules():
        module.training = modes.get(name, modes[""])
    if sampling == "per_sample":
        check_images(traced)
    return GatedNetwork(net, traced.graph, example), places


def check_gate_names(net: nn.Module) -> None:
    """Raise UserError if something of its own has the name that a gate layer would get."""
    own = net._modules.get(GATES, nn.Module())
    names = [{name for name, _ in each.named_modules() if name} for each in (own, net)]
    if GATES in {**net._parameters, **net._buffers} or is_layer(own) or names[0] & names[1]:
        raise UserError(f"{GATES} is the name of the module with the gate layers: rename the other")


def check_images(traced: fx.GraphModule) -> None:
    """Raise UserError if a gate multiplies something else than one, or more, for each image."""
    [images] = traced.graph.find_nodes(op="placeholder")
    for node in traced.graph.find_nodes(op="call_module"):
        source = node.args[0]
        is_gate = isinstance(module_of(traced, node), L0Gate | SharedGates)
        if is_gate and len(source.meta["value"]) % len(images.meta["value"]):
            why = ": gates are drawn for each image, and it joins images: use sampling=per_batch"
            refuse(traced, source, f"{why}, or exclude it")


def is_chosen(name: str, include: list[str], exclude: list[str]) -> bool:
    chosen = any(fnmatch(name, pattern) for pattern in include)
    return chosen and not any(fnmatch(name, pattern) for pattern in exclude)


def add_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Under a dotted name, with the modules in between."""
    *path, last = name.split(".")
    for part in path:
        net = net._modules.setdefault(part, nn.Module())  # a class may have its own `gates`
    net._modules[last] = module


def as_list(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def put_read(net: nn.Module, traced: fx.GraphModule, read: Read, gates: dict[str, L0Gate]) -> None:
    """Multiply shared gates into a tensor, for the layers that read it."""
    layers, places = read.gates.T
    names = [name for i, name in enumerate(gates) if (layers == i).any()]
    order, start = layers.new_full((len(layers),), -1), 0
    for name in names:
        mine = layers == [*gates].index(name)
        order[mine] = places[mine] + start
        start += len(gates[name].qz_loga)
    shared = SharedGates({name: gates[name] for name in names}, order, read.axis, read.selects)
    name = free_name(net, f"shared_{read.source}")
    net.add_module(name, shared)
    traced.add_submodule(name, shared)
    source = next(node for node in traced.graph.nodes if node.name == read.source)
    with traced.graph.inserting_after(source):
        node = traced.graph.call_module(name, (source,))
    node.meta["value"] = source.meta["value"]
    for user in list(source.users):
        if user.name in read.readers:
            user.replace_input_with(source, node)


def with_coupling(place: Place, found: Coupling) -> list[Place]:
    """What has become of a layer that had no gate of its own, after the gates on its inputs."""
    name, shared = place.layer, place
    if place.why_not is not None and not place.is_input:
        if name in found.widths:
            writers = [n for n, layers in found.goes_with.items() if name in layers]
            others, width = tuple(n for n in writers if n != name), found.widths[name]
            shared = replace(shared, channels=place.width, width=width, goes=others, why_not=None)
        elif name in found.goes_with:
            why_not = f"goes with the channels of {', '.join(found.goes_with[name])}"
            shared = replace(shared, why_not=why_not)
    if place.is_input or name not in found.inputs:
        return [shared]
    _, *others = found.inputs[name]
    width = found.widths[input_gate(name)]
    return [Place(name, width, None, is_input=True, goes=tuple(others)), shared]


def table_of(places: list[Place]) -> Table:
    table = Table("layer", "channels", "gates", "why not")
    for place in places:
        gates = place.width if place.why_not is None else 0
        label = f"inputs of {place.layer}" if place.is_input else place.layer
        note = f"shared by {1 + len(place.goes)} layers" if place.goes else ""
        table.add_row(label, str(place.channels or place.width), str(gates), place.why_not or note)
    table.add_row("all", "", str(sum(p.width for p in places if p.why_not is None)), "")
    return table


def reach_line(reach: dict[str, float]) -> str:
    """The highest sparsity, with one gate of each open that something depends on."""
    text = f"at most {reach['params']:.1%} of the parameters and {reach['macs']:.1%} of the "
    text += "multiply-adds can go"
    if min(reach.values()) < ENOUGH:
        text = f"[yellow]warning:[/yellow] {text}: see why not in the table, or show=True"
    return text
