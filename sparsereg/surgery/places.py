"""Where gates go: behind layers whose channels can be removed alone, and before linear layers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from torch import fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.operations import Kind
from sparsereg.graph.readers import kept, removers
from sparsereg.model.basic_l0_blocks import GATES, L0Gate
from sparsereg.surgery.coupling import input_gate


@dataclass(frozen=True)
class Place:
    """A layer, and why its output channels, or its inputs, have no gate; None if they have.

    `width`: gates; `channels`: of the layer. The gates are behind the node `end`, on dimension
    `axis`; or `is_input`, before the layer; or the layers `goes` share them.
    """

    layer: str
    width: int
    why_not: str | None
    end: str = ""
    axis: int = 1
    is_input: bool = False
    channels: int = 0
    goes: tuple[str, ...] = ()

    @property
    def gate(self) -> str:
        """Name of the gate layer."""
        return input_gate(self.layer) if self.is_input else self.layer


def find_places(
    traced: fx.GraphModule, include: list[str], exclude: list[str], gate_inputs: list[str]
) -> list[Place]:
    """Tries a gate on every layer; the analysis then says which of them remove their channels."""
    plain = ChannelGraph(traced)
    layers = [n for n, kind in plain.kinds.items() if kind in (Kind.MIX, Kind.GROUPED)]
    widths = {node.target: plain.flow[node].width for node in layers}
    if not layers:
        raise UserError(
            "the network has no channels that can be removed: none of its layers can "
            "be followed (those that are called twice cannot)"
        )
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
    removed_by = removers(channels)
    keeps = kept(channels, removed_by)

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
    """The name of the layer, or of the last operation that keeps its channels apart before others
    read them: there all of it goes with a channel."""
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
