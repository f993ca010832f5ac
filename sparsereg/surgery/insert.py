"""Gates in any convolutional network: one on every group of channels that can be removed alone."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.layers import copied
from sparsereg.graph.operations import Kind
from sparsereg.graph.readers import kept, removers
from sparsereg.model.basic_l0_blocks import GATES, L0Gate, gate_layers
from sparsereg.model.gated import GatedNetwork
from sparsereg.surgery.modes import trace_both_modes

TOLERANCE = 1e-4  # of the largest output, in single precision
Patterns = str | Sequence[str]


@dataclass(frozen=True)
class Place:
    """A layer, and why its output channels, or its inputs, have no gate; None if they have one."""

    layer: str
    width: int
    why_not: str | None
    end: str = ""
    axis: int = 1
    is_input: bool = False

    @property
    def gate(self) -> str:
        """Name of the gate layer."""
        return f"{self.layer}_inputs" if self.is_input else self.layer


def insert_gates(
    net: nn.Module,
    example: Tensor,
    droprate_init: float = 0.5,
    include: Patterns = "*",
    exclude: Patterns = (),
    temperature: float = 2 / 3,
    sampling: str = "per_sample",
    gate_inputs: Patterns = (),
    show: bool = True,
) -> GatedNetwork:
    """`net` with an `L0Gate` on every group of channels that can be removed alone.

    That are the output channels of a convolution or linear layer, with its BatchNorm, activation
    and depthwise convolution, if the gate behind them is all that other layers read them through.
    Names of parameters stay: state dicts of `net` fit, but for the `gates.….qz_loga`.

    Args:
        net: a classifier; not changed.
        example: images that it takes, (N, C, H, W).
        droprate_init, temperature, sampling: see `L0Gate`. Trained weights need open gates, 0.05.
        include, exclude: names of layers that may, or may not, get gates, with * and ?.
        gate_inputs: names of linear layers whose every input gets a gate too, `gates.NAME_inputs`,
            where the gates of the channels before it do not close each of them by itself.
        show: print which layers have gates, and why the others do not.

    Raises:
        UserError: names the operation, with its line, through which channels cannot be followed; or
            a pattern that fits no layer.
    """
    settings = droprate_init, include, exclude, temperature, sampling, gate_inputs
    gated, places = place_gates(net, *settings, example)
    check_outputs(net, gated, example)
    if show:
        Console().print(table_of(places))
    return gated


def place_gates(
    net: nn.Module,
    droprate_init: float = 0.5,
    include: Patterns = "*",
    exclude: Patterns = (),
    temperature: float = 2 / 3,
    sampling: str = "per_sample",
    gate_inputs: Patterns = (),
    example: Tensor | None = None,
) -> tuple[GatedNetwork, list[Place]]:
    """What `insert_gates` does, without its last comparison; `example`: see `trace`."""
    if any(isinstance(module, L0Gate) for module in net.modules()):
        raise UserError(f"{type(net).__name__} has gates already")
    modes = {name: module.training for name, module in net.named_modules()}
    net = copied(net)
    traced, example = trace_both_modes(net, example)
    places = find_places(traced, *map(as_list, (include, exclude, gate_inputs)))
    chosen = [place for place in places if place.why_not is None]
    if not chosen:
        raise UserError(
            f"{type(net).__name__} has no channels that can be removed alone: "
            + "; ".join(dict.fromkeys(f"{place.why_not}" for place in places[:3]))
        )
    for place in chosen:
        gate = L0Gate(place.width, droprate_init, temperature, sampling, place.axis)
        put_gate(traced, place, gate)
        add_module(net, f"{GATES}.{place.gate}", gate)
    for name, module in net.named_modules():
        module.training = modes.get(name, net.training if not name else modes[""])
    return GatedNetwork(net, traced.graph, example), places


def add_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Under a dotted name, with the modules in between."""
    *path, last = name.split(".")
    for part in path:
        net = net._modules.setdefault(part, nn.Module())  # a class may have its own `gates`
    net._modules[last] = module


def as_list(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def find_places(
    traced: fx.GraphModule, include: list[str], exclude: list[str], gate_inputs: list[str]
) -> list[Place]:
    """Tries a gate on every layer; the analysis then says which of them remove their channels."""
    plain = ChannelGraph(traced)
    layers = [n for n, kind in plain.kinds.items() if kind in (Kind.MIX, Kind.GROUPED)]
    widths = {node.target: plain.flow[node].width for node in layers}
    for pattern in include + exclude:
        if not any(fnmatch(name, pattern) for name in widths):
            raise UserError(f"no layer is named {pattern}: there are {', '.join([*widths][:5])}, …")
    trial = fx.GraphModule(traced, copy.deepcopy(traced.graph))
    tries = [
        Place(node.target, widths[node.target], None, end_of(plain, node), axis_of(plain, node))
        for node in layers
    ]
    for place in tries:
        put_gate(trial, place, L0Gate(place.width, axis=place.axis))
    channels = ChannelGraph(trial.eval())
    removed_by, keeps = removers(channels), kept(channels)

    def gates_of(node: fx.Node) -> list[str | None]:
        """The layers whose gates remove the channels of a node, and None if not all have one."""
        names = channels.gate_layers_of(removed_by[node])
        return [name and name.removeprefix(f"{GATES}.") for name in names]

    goes_with = {node.target: gates_of(node) for node in removed_by}

    def why_not(name: str) -> str | None:
        if getattr(traced.get_submodule(name), "groups", 1) > 1:
            return "a grouped convolution: its groups stay equal"
        if not any(fnmatch(name, pattern) for pattern in include):
            return "not included"
        if any(fnmatch(name, pattern) for pattern in exclude):
            return "excluded"
        if (gate := f"{GATES}.{name}") not in keeps:
            return None
        if None not in goes_with[name]:
            return f"goes with the channels of {', '.join(goes_with[name])}"
        every = f"{widths[name]} of {widths[name]} channels: "
        return keeps[gate].removeprefix(every)

    own = {place.layer: replace(place, why_not=why_not(place.layer)) for place in tries}
    inputs = input_places(traced, channels, own, gate_inputs, gates_of)
    return [place for name in own for place in (inputs.get(name), own[name]) if place]


def axis_of(graph: ChannelGraph, layer: fx.Node) -> int:
    """Of the channels that a layer makes: 1 in (N, C, …), -1 in (N, …, C)."""
    return 1 if graph.flow[layer].axis == 1 else -1


def input_places(
    traced: fx.GraphModule,
    channels: ChannelGraph,
    own: dict[str, Place],
    patterns: list[str],
    gates_of: Callable[[fx.Node], list[str | None]],
) -> dict[str, Place]:
    """The linear layers that fit the patterns, whose inputs get gates unless those behind another
    layer close each of them already."""
    linear = {n: m for n in own if isinstance(m := traced.get_submodule(n), nn.Linear)}
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in linear):
            has = ", ".join(linear) or "none"
            raise UserError(f"gate_inputs: no linear layer is named {pattern}: there are {has}")
    places = {}
    for node in channels.kinds:
        if node.target in linear and any(fnmatch(node.target, pattern) for pattern in patterns):
            [source] = channels.sources(node)
            before, width = gates_of(source), linear[node.target].in_features
            gated = all(name in own and own[name].why_not is None for name in before)
            why_not = None
            if gated and len(channels.gate_of[source]) == width:
                why_not = f"the gates of {', '.join(before)} close them"
            places[node.target] = Place(node.target, width, why_not, is_input=True)
    return places


def end_of(graph: ChannelGraph, layer: fx.Node) -> str:
    """The name of the layer, or the last of what keeps its channels apart before others read them: there all of
    it goes with a channel."""
    apart = (Kind.AFFINE, Kind.SCALE, Kind.POOL, Kind.ZERO)
    end = layer
    while len(end.users) == 1:
        [reader] = end.users
        if graph.kinds[reader] not in apart or graph.flow[reader].axis != graph.flow[end].axis:
            break
        end = reader
    return end.name


def put_gate(traced: fx.GraphModule, place: Place, gate: L0Gate) -> None:
    """Put a gate before the layer, or behind the end of what goes with it."""
    name = f"{GATES}.{place.gate}"
    traced.add_submodule(name, gate)
    if place.is_input:
        [layer] = traced.graph.find_nodes(op="call_module", target=place.layer)
        with traced.graph.inserting_before(layer):
            node = traced.graph.call_module(name, layer.args)
        node.meta["value"] = layer.args[0].meta["value"]
        layer.args = (node,)
    else:
        end = next(node for node in traced.graph.nodes if node.name == place.end)
        with traced.graph.inserting_after(end):
            node = traced.graph.call_module(name, (end,))
        node.meta["value"] = end.meta["value"]
        end.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    traced.recompile()


def check_outputs(net: nn.Module, gated: GatedNetwork, example: Tensor) -> None:
    """Raise UserError unless `net` is a classifier; with open gates `gated` computes the same."""
    net, opened = copy.deepcopy(net).eval(), copy.deepcopy(gated).eval()
    with torch.no_grad():
        for gate in gate_layers(opened).values():
            gate.qz_loga.fill_(10.0)
        expected = net(example)
        if expected.dim() != 2:
            raise UserError(
                f"{type(net).__name__} must give logits (N, classes), not {tuple(expected.shape)}"
            )
        if not torch.allclose(opened(example), expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise RuntimeError(f"{type(net).__name__} with open gates computes something else")


def table_of(places: list[Place]) -> Table:
    table = Table("layer", "channels", "gates", "why not")
    for place in places:
        gates = place.width if place.why_not is None else 0
        label = f"inputs of {place.layer}" if place.is_input else place.layer
        table.add_row(label, str(place.width), str(gates), place.why_not or "")
    table.add_row("all", "", str(sum(p.width for p in places if p.why_not is None)), "")
    return table
