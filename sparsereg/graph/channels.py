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

import torch
from torch import Tensor, fx, nn

from sparsereg.graph.nodes import module_of, refuse
from sparsereg.graph.operations import Kind, channel_order, kind_of
from sparsereg.graph.tracing import trace
from sparsereg.model.layers import ChannelSelect

NO_GATE = 0  # gates count from 1


class ChannelGraph:
    """The channels of a traced network.

    Args:
        net: a network in eval mode; not changed.

    Attributes:
        traced: the graph; it shares the modules of `net`.
        kinds: the kind of each node, see `operations`.
        gates: for each gate layer, by module name, its numbers among all gates.
        gate_of: for each node that has channels, the gate of each, (C,); `NO_GATE` for none.
        flat: nodes of shape (N, features), every channel with all its positions.
        order: for each node that selects channels, which one of its source each of its own is; of a
            flattened tensor, which feature.
        positions: for each node that selects features of a flattened tensor, how many of them each
            channel of its source has.
        channel_gate: of each gate, (1 + gates,), that of the channel whose features it selects.
        notes: for each gate that something keeps apart from its channel, what that is.

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
        self.notes: dict[int, str] = {}
        for node, kind in self.kinds.items():
            if kind == Kind.OUTPUT:
                self.note(self.gate_of[node.args[0]], "is an output of the network")
            elif kind != Kind.SIZE:
                self.gate_of[node] = self.follow(node, kind)

    def module(self, node: fx.Node) -> nn.Module | None:
        return module_of(self.traced, node)

    def name_of(self, node: fx.Node) -> str:
        return node.target if node.op == "call_module" else node.name

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads, in order; twice, what it reads twice."""
        arguments = [*node.args, *node.kwargs.values()]
        if self.kinds[node] == Kind.CAT:
            arguments = node.args[0] if node.args else node.kwargs["tensors"]
        return [a for a in arguments if isinstance(a, fx.Node) and a in self.gate_of]

    # Forward: which gate multiplies a channel

    def follow(self, node: fx.Node, kind: Kind) -> Tensor:
        """The gate of each channel of a node, from those of the nodes before it."""
        if kind == Kind.INPUT:
            return torch.full((self.input_width(node),), NO_GATE)
        sources = self.sources(node)
        before = [self.gate_of[source] for source in sources]
        self.check_widths(node, kind, sources)
        if kind != Kind.UNFLATTEN and (
            kind == Kind.FLATTEN or any(s in self.flat for s in sources)
        ):
            self.flat.add(node)
        if kind == Kind.CAT:
            return torch.cat(before)
        if kind == Kind.ADD:
            both = torch.where(before[0] == before[1], before[0], NO_GATE)
            for gates in before:
                self.note(gates[both == NO_GATE], f"it is added to another tensor ({node.name})")
            return both
        if kind == Kind.MUL:
            self.note(before[1][before[0] != NO_GATE], f"{node.name} multiplies it")
            return torch.where(before[0] == NO_GATE, before[1], before[0])
        if kind == Kind.SELECT:
            self.order[node] = channel_order(self.traced, node, len(before[0]))
            if sources[0] in self.flat:
                self.positions[node] = self.module(node).positions
            return before[0].repeat_interleave(self.positions.get(node, 1))[self.order[node]]
        if kind == Kind.GROUPED:
            self.note(before[0], f"{node.target} is a grouped convolution: its groups stay equal")
        if kind in (Kind.MIX, Kind.GROUPED):
            return torch.full((self.module(node).weight.shape[0],), NO_GATE)
        if kind in (Kind.AFFINE, Kind.CONSTANT):
            self.note(before[0], f"{self.name_of(node)} makes a constant of its zero")
            return torch.full_like(before[0], NO_GATE)
        if kind == Kind.GATE:
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
        while self.kinds[source] in (Kind.SCALE, Kind.ZERO, Kind.FLATTEN):
            [source] = self.sources(source)
        return self.kinds[source] == Kind.INPUT or source in self.positions

    def input_width(self, node: fx.Node) -> int:
        """The input has the channels that the first layer reads."""
        if list(self.kinds.values()).count(Kind.INPUT) > 1:
            refuse(self.traced, node, ": the network has several inputs")
        selected = None
        for layer, kind in self.kinds.items():
            module = self.module(layer)
            if kind == Kind.SELECT and isinstance(module, ChannelSelect):
                selected = selected or int(module.order.max()) + 1
            if kind in (Kind.MIX, Kind.GROUPED):
                if isinstance(module, nn.Linear):
                    self.flat.add(node)
                return selected or width_of(module)
        refuse(self.traced, node, ": no convolution or linear layer reads it")

    def check_widths(self, node: fx.Node, kind: Kind, sources: list[fx.Node]) -> None:
        """What was followed must fit what the layer was built for."""
        width, module = len(self.gate_of[sources[0]]), self.module(node)
        if kind == Kind.CAT and any(source in self.flat for source in sources):
            refuse(self.traced, node, ": it joins flattened tensors")
        whole = kind == Kind.SPLIT or (
            kind == Kind.SELECT and not isinstance(module, ChannelSelect)
        )
        if whole and sources[0] in self.flat:
            refuse(self.traced, node, ": it takes apart a flattened tensor")
        if kind == Kind.UNFLATTEN and sources[0] not in self.flat:
            refuse(self.traced, node, ": it is no flattened tensor")
        if kind in (Kind.ADD, Kind.MUL) and width != len(self.gate_of[sources[1]]):
            refuse(self.traced, node, ": its sides have different numbers of channels")
        if kind == Kind.GATE and self.is_gated(sources[0]):
            refuse(self.traced, node, ": its channels have a gate already")
        if isinstance(module, nn.Linear):
            if sources[0] not in self.flat or module.in_features % width:
                refuse(self.traced, node, f": {width} channels come in and are not flattened")
        elif kind in (Kind.MIX, Kind.GROUPED, Kind.AFFINE, Kind.GATE):
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

    def gate_layers_of(self, gates: Tensor) -> list[str | None]:
        """The names of the layers that these gates belong to, each once; None for no gate."""
        layers = {number: name for name, numbers in self.gates.items() for number in numbers}
        return [*dict.fromkeys(layers.get(gate) for gate in gates.tolist())]


def width_of(module: nn.Module) -> int:
    """Input channels of a convolution, linear layer, BatchNorm or gate."""
    names = ("in_channels", "in_features", "num_features")
    return next((n for name in names if (n := getattr(module, name, None))), None) or len(
        module.qz_loga
    )
