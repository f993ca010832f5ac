"""Which channels of a network belong together, and which gates close them.

The network is traced, so no network is known by name. Forward through the graph, every channel of
every tensor learns which gate multiplies it; backward, every channel learns who still reads it:

- A gate's zero stays zero through activations, pooling, concatenation and flattening.
- Behind a flattening every channel is several features. A gate of each feature selects them; one is
  there if its own gate and that of its channel are open.
- A convolution or linear layer mixes its inputs, and does not need those that are zero.
- BatchNorm and depthwise convolutions keep channels apart, but make a constant of a zero.
- An addition needs the same channels from both sides; zero is what is zero on both. So does a
  multiplication, as of squeeze-excitation, but there one zero is enough.
- A grouped convolution keeps all its channels and those it reads: its groups must stay equal.

A channel that nothing reads is not computed, and so on up to the input.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, fx, nn

from sparsereg.graph.operations import (
    ADD,
    AFFINE,
    CAT,
    CONSTANT,
    FLATTEN,
    GATE,
    GROUPED,
    INPUT,
    MIX,
    MUL,
    OUTPUT,
    SCALE,
    SELECT,
    SIZE,
    SPLIT,
    UNFLATTEN,
    ZERO,
    channel_order,
    kind_of,
    module_of,
    refuse,
)
from sparsereg.graph.readers import settle
from sparsereg.graph.tracing import trace
from sparsereg.model.layers import ChannelSelect

NO_GATE = 0  # gates count from 1
UNREAD = -1  # no gate, because nothing reads the channel anyway


@dataclass(frozen=True)
class Segment:
    """`width` neighbouring channels: of gates `start`, `start` + 1, … of the layer `gate`, or,
    where `gate` is None, channels that no single gate closes."""

    width: int
    gate: str | None = None
    start: int = 0


@dataclass(frozen=True)
class Layer:
    """Which gates multiply the inputs of a layer, and which remove its outputs when closed."""

    inputs: tuple[Segment, ...]
    outputs: tuple[Segment, ...]


class ChannelGraph:
    """The channels of a traced network.

    Args:
        net: a network in eval mode; not changed.

    Attributes:
        traced: the graph; it shares the modules of `net`.
        kinds: the kind of each node, see `operations`.
        gates: for each gate layer, by module name, its numbers among all gates.
        gate_of: for each node that has channels, the gate of each, (C,); `NO_GATE` for none.
        removed_by: the same, but the gate whose closing removes the channel.
        flat: nodes of shape (N, features), every channel with all its positions.
        order: for each node that selects channels, which one of its source each of its own is; of a
            flattened tensor, which feature.
        positions: for each node that selects features of a flattened tensor, how many of them each
            channel of its source has.
        channel_gate: of each gate, (1 + gates,), that of the channel whose features it selects.
        kept: gate layers that cannot remove all their channels, and why.

    Raises:
        UserError: names an operation through which channels cannot be followed.
    """

    def __init__(self, net: nn.Module):
        self.traced = trace(net)
        self.kinds = {node: kind_of(self.traced, node) for node in self.traced.graph.nodes}
        self.gates: dict[str, range] = {}
        self.gate_of: dict[fx.Node, Tensor] = {}
        self.flat: set[fx.Node] = set()
        self.order: dict[fx.Node, Tensor] = {}
        self.positions: dict[fx.Node, int] = {}
        self.channel_gate = torch.tensor([NO_GATE])
        self.notes: dict[int, str] = {}  # gate: what is behind it
        for node, kind in self.kinds.items():
            if kind == OUTPUT:
                self.note(self.gate_of[node.args[0]], "is an output of the network")
            elif kind != SIZE:
                self.gate_of[node] = self.follow(node, kind)
        self.removed_by = self.find_removers()
        self.kept = self.find_kept()

    def module(self, node: fx.Node) -> nn.Module | None:
        return module_of(self.traced, node)

    def name_of(self, node: fx.Node) -> str:
        return node.target if node.op == "call_module" else node.name

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads, in order; twice, what it reads twice."""
        arguments = [*node.args, *node.kwargs.values()]
        if self.kinds[node] == CAT:
            arguments = node.args[0] if node.args else node.kwargs["tensors"]
        return [a for a in arguments if isinstance(a, fx.Node) and a in self.gate_of]

    # Forward: which gate multiplies a channel

    def follow(self, node: fx.Node, kind: str) -> Tensor:
        """The gate of each channel of a node, from those of the nodes before it."""
        if kind == INPUT:
            return torch.full((self.input_width(node),), NO_GATE)
        sources = self.sources(node)
        before = [self.gate_of[source] for source in sources]
        self.check_widths(node, kind, sources)
        if kind != UNFLATTEN and (kind == FLATTEN or any(s in self.flat for s in sources)):
            self.flat.add(node)
        if kind == CAT:
            return torch.cat(before)
        if kind == ADD:
            both = same(*before)
            for gates in before:
                self.note(gates[both == NO_GATE], f"it is added to another tensor ({node.name})")
            return both
        if kind == MUL:
            self.note(before[1][before[0] != NO_GATE], f"{node.name} multiplies it")
            return torch.where(before[0] == NO_GATE, before[1], before[0])
        if kind == SELECT:
            self.order[node] = channel_order(self.traced, node, len(before[0]))
            if sources[0] in self.flat:
                self.positions[node] = self.module(node).positions
            return before[0].repeat_interleave(self.positions.get(node, 1))[self.order[node]]
        if kind == GROUPED:
            self.note(before[0], f"{node.target} is a grouped convolution: its groups stay equal")
        if kind in (MIX, GROUPED):
            return torch.full((self.module(node).weight.shape[0],), NO_GATE)
        if kind in (AFFINE, CONSTANT):
            self.note(before[0], f"{self.name_of(node)} makes a constant of its zero")
            return torch.full_like(before[0], NO_GATE)
        if kind == GATE:
            return self.add_gates(node, sources[0])
        return before[0]

    def add_gates(self, node: fx.Node, source: fx.Node) -> Tensor:
        """Number the gates of a layer, (its width,)."""
        first, width = len(self.channel_gate), width_of(self.module(node))
        self.gates[node.target] = range(first, first + width)
        before = torch.full((width,), NO_GATE)
        if self.takes_features(source, width):
            self.positions[node] = width // len(self.gate_of[source])
            self.order[node] = torch.arange(width)
            before = self.gate_of[source].repeat_interleave(self.positions[node])
        self.channel_gate = torch.cat([self.channel_gate, before])
        return torch.tensor(self.gates[node.target])

    def takes_features(self, source: fx.Node, width: int) -> bool:
        """Must a gate layer of this width select, because what makes the features of `source`
        cannot leave one of them out?"""
        if source not in self.flat:
            return False
        if width > len(self.gate_of[source]) or (self.gate_of[source] != NO_GATE).any():
            return True
        while self.kinds[source] in (SCALE, ZERO, FLATTEN):
            [source] = self.sources(source)
        return self.kinds[source] == INPUT or source in self.positions

    def input_width(self, node: fx.Node) -> int:
        """The input has the channels that the first layer reads."""
        if list(self.kinds.values()).count(INPUT) > 1:
            refuse(self.traced, node, ": the network has several inputs")
        selected = None
        for layer, kind in self.kinds.items():
            module = self.module(layer)
            if kind == SELECT and isinstance(module, ChannelSelect):
                selected = selected or int(module.order.max()) + 1
            if kind in (MIX, GROUPED):
                if isinstance(module, nn.Linear):
                    self.flat.add(node)
                return selected or width_of(module)
        refuse(self.traced, node, ": no convolution or linear layer reads it")

    def check_widths(self, node: fx.Node, kind: str, sources: list[fx.Node]) -> None:
        """What was followed must fit what the layer was built for."""
        width, module = len(self.gate_of[sources[0]]), self.module(node)
        if kind == CAT and any(source in self.flat for source in sources):
            refuse(self.traced, node, ": it joins flattened tensors")
        whole = kind == SPLIT or (kind == SELECT and not isinstance(module, ChannelSelect))
        if whole and sources[0] in self.flat:
            refuse(self.traced, node, ": it takes apart a flattened tensor")
        if kind == UNFLATTEN and sources[0] not in self.flat:
            refuse(self.traced, node, ": it is no flattened tensor")
        if kind in (ADD, MUL) and width != len(self.gate_of[sources[1]]):
            refuse(self.traced, node, ": its sides have different numbers of channels")
        if kind == GATE and self.is_gated(sources[0]):
            refuse(self.traced, node, ": its channels have a gate already")
        if isinstance(module, nn.Linear):
            if sources[0] not in self.flat or module.in_features % width:
                refuse(self.traced, node, f": {width} channels come in and are not flattened")
        elif kind in (MIX, GROUPED, AFFINE, GATE):
            own = width_of(module)  # perhaps of the features that each channel has become
            if own % width if sources[0] in self.flat else own != width:
                refuse(self.traced, node, f": {width} channels come in")

    def is_gated(self, source: fx.Node) -> bool:
        """Is there no room for one more gate? Features may have theirs beside that of a channel."""
        gates = self.gate_of[source]
        if source in self.flat:
            gates = self.channel_gate[gates]
        return bool((gates != NO_GATE).any())

    def note(self, gates: Tensor, reason: str) -> None:
        self.notes = dict.fromkeys(gates.tolist(), reason) | self.notes

    # Backward: who reads a channel

    def present(self, is_open: Tensor) -> dict[fx.Node, Tensor]:
        """Which channels of each tensor remain in the cut network, (C,), 1 or 0.

        Args:
            is_open: for each gate 1 or 0, shape (number of gates,), integers.
        """

        alive = torch.cat([is_open.new_ones(1), is_open])
        alive = alive * alive[self.channel_gate]

        def read(gates: Tensor, layer: Tensor | None) -> Tensor:
            return torch.ones_like(gates) if layer is None else alive[gates] * layer.any()

        def lift(channel: Tensor, own: Tensor, asked: Tensor) -> Tensor:
            return asked  # a feature that is there is never without its channel

        return settle(self, read, torch.maximum, lift, always=1, never=0)

    def find_removers(self) -> dict[fx.Node, Tensor]:
        def read(gates: Tensor, layer: Tensor | None) -> Tensor:
            return torch.full_like(gates, NO_GATE) if layer is None else gates

        def lift(channel: Tensor, own: Tensor, asked: Tensor) -> Tensor:
            return torch.where(asked == own, channel, asked)

        found = settle(self, read, same, lift, always=NO_GATE, never=UNREAD)
        return {node: gates.clamp(min=NO_GATE) for node, gates in found.items()}

    # What is found

    def find_kept(self) -> dict[str, str]:
        kept = {}
        for node, kind in self.kinds.items():
            if kind == GATE:
                own = self.gate_of[node]
                lost = own[self.removed_by[node] != own].tolist()
                if lost:
                    why = self.notes.get(lost[0], "it is an input, or read without the gate too")
                    width = len(self.gates[node.target])
                    kept[node.target] = f"{len(lost)} of {width} channels: {why}"
        return kept

    def layers(self) -> dict[str, Layer]:
        """The segments of each convolution, BatchNorm and linear layer, by module name."""
        return {
            node.target: Layer(
                self.segments(self.gate_of[self.sources(node)[0]]),
                self.segments(self.removed_by[node]),
            )
            for node, kind in self.kinds.items()
            if kind in (MIX, GROUPED, AFFINE)
        }

    def segments(self, gates: Tensor) -> tuple[Segment, ...]:
        """Neighbouring channels of one gate layer, or of none, together."""
        places = {NO_GATE: (None, 0)}
        for name, numbers in self.gates.items():
            places |= {number: (name, i) for i, number in enumerate(numbers)}
        channels = [(*places[gate], c) for c, gate in enumerate(gates.tolist())]
        # gates that follow one another are as far from the number of their channel
        runs = groupby(channels, lambda place: (place[0], place[0] and place[1] - place[2]))
        runs = [(name, list(run)) for (name, _), run in runs]
        return tuple(Segment(len(run), name, run[0][1]) for name, run in runs)


def same(a: Tensor, b: Tensor) -> Tensor:
    """The gate where both have the same, or only one is read, else none."""
    both = torch.where(a == b, a, NO_GATE)
    return torch.where(a == UNREAD, b, torch.where(b == UNREAD, a, both))


def width_of(module: nn.Module) -> int:
    """Input channels of a convolution, linear layer, BatchNorm or gate."""
    names = ("in_channels", "in_features", "num_features")
    return next((n for name in names if (n := getattr(module, name, None))), None) or len(
        module.qz_loga
    )
