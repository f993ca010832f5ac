"""Which channels of a network belong together, and which gates close them.

The network is traced, so no network is known by name. Forward through the graph, every channel of
every tensor learns which gate multiplies it (`flows`); backward, who still reads it (`readers`):

- A gate's zero stays zero through activations, pooling, concatenation and flattening.
- Behind a flattening every channel is several features. A gate of each feature selects them; one is
  there if its own gate and that of its channel are open.
- A convolution or linear layer mixes its inputs, and does not need those that are zero.
- BatchNorm and depthwise convolutions keep channels apart, but make a constant of a zero.
- An addition needs the same channels from both sides; zero is what is zero on both. So does a
  multiplication, as of squeeze-excitation, but there one zero is enough.
- A grouped convolution keeps or loses whole groups, which must stay of one size.
- Whatever else there is, attention say, reads all channels of its inputs: a barrier. Behind it
  everything is new.

A channel that nothing reads is not computed, and so on up to the input.
"""

from collections import Counter

import torch
from torch import Tensor, fx, nn

from sparsereg.graph.flows import RULES, origin_of, shape_of
from sparsereg.graph.nodes import NO_GATE, Edge, Flow, How, module_of, refuse, whole
from sparsereg.graph.operations import Kind, kind_of
from sparsereg.graph.tracing import trace
from sparsereg.model.basic_l0_blocks import L0Gate, SharedGates

REASONS = {  # what becomes of a zero, or why it does not help
    Kind.ADD: "it is added to another tensor ({})",
    Kind.CAT: "{} joins it with another tensor",
    Kind.MUL: "{} multiplies it",
    Kind.AFFINE: "{} makes a constant of its zero",
    Kind.CONSTANT: "{} makes a constant of its zero",
    Kind.GROUPED: "{} is a grouped convolution: its groups stay equal",
}


class ChannelGraph:
    """The channels of a traced network.

    Args:
        net: a network in eval mode, a private copy.
        example: images that it takes; None: see `trace`.

    Attributes:
        traced: the graph; it shares the modules of `net`.
        kinds: the kind of each node, see `operations`.
        flow: for each node that is a tensor, its `Flow`.
        gate_of: of these, the gate of each channel, (C,); `NO_GATE` for none.
        gates: for each gate layer, by module name, its numbers among all gates.
        gate_layers: the same layers.
        positions: for each node that selects features of a flattened tensor, how many of them each
            channel of its source has.
        channel_gate: of each gate, (1 + gates,), that of the channel whose features it selects.
        notes: for each gate that something keeps apart from its channel, what that is.

    Raises:
        UserError: the network cannot be traced, or has a gate where none can be.
    """

    def __init__(self, net: nn.Module, example: Tensor | None = None):
        self.traced = trace(net, example)
        self.shared = shared(self.traced)
        self.kinds: dict[fx.Node, Kind] = {}
        self.flow: dict[fx.Node, Flow] = {}
        self.gate_of: dict[fx.Node, Tensor] = {}
        self.gates: dict[str, range] = {}
        self.gate_layers: dict[str, L0Gate] = {}
        self.positions: dict[fx.Node, int] = {}
        self.channel_gate = torch.tensor([NO_GATE])
        self.notes: dict[int, str] = {}
        for node in self.traced.graph.nodes:
            self.kinds[node] = self.kind(node)
            if node.op == "output":
                self.check_output(node)
            elif self.kinds[node] == Kind.SPLIT:
                node.meta["scattered"] = True  # its parts are followed
            elif self.kinds[node] != Kind.SIZE:
                self.flow[node] = self.follow(node)
                self.gate_of[node] = self.flow[node].gates

    def module(self, node: fx.Node) -> nn.Module | None:
        return module_of(self.traced, node)

    def name_of(self, node: fx.Node) -> str:
        return node.target if node.op == "call_module" else node.name

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads, in order; twice, what it reads twice."""
        found: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), found.append)
        return [source for source in found if source in self.flow]

    # Forward: which gate multiplies a channel

    def kind(self, node: fx.Node) -> Kind:
        kind, value = kind_of(self.traced, node), node.meta.get("value")
        if kind in (Kind.INPUT, Kind.OUTPUT, Kind.GATE):
            return kind
        if not isinstance(value, Tensor):
            tensors = isinstance(value, list) and any(isinstance(v, Tensor) for v in value)
            return (kind if kind == Kind.SPLIT else Kind.BARRIER) if tensors else Kind.SIZE
        if kind == Kind.SIZE or (node.target in self.shared and holds_weights(self.module(node))):
            return Kind.BARRIER
        return kind

    def follow(self, node: fx.Node) -> Flow:
        """The channels behind a node, from those of the nodes before it."""
        kind = self.kinds[node]
        if kind == Kind.INPUT:
            return self.input(node)
        if kind == Kind.GATE:
            return self.gate(node)
        sources = self.sources(node)
        if kind == Kind.MOVE:
            origin, _ = origin_of(node)
            sources = [origin] if origin in self.flow else sources
        pairs = [(source, self.flow[source]) for source in sources]
        rule = RULES.get(kind)
        flow = rule(self.traced, node, pairs) if rule and (pairs or node.op == "get_attr") else None
        if flow is None:
            node.meta["scattered"] = kind == Kind.MOVE
            if kind != Kind.CONSTANT_TENSOR:
                self.kinds[node] = Kind.BARRIER
            flow = whole(self.sources(node) or self.parts(node))
        self.note_losses(node, flow)
        return flow

    def parts(self, node: fx.Node) -> list[fx.Node]:
        """What the parts of a tuple are of."""
        return [s for split in node.all_input_nodes for s in self.sources(split)]

    def input(self, node: fx.Node) -> Flow:
        dims = shape_of(node)
        if len(dims) < 2:
            refuse(self.traced, node, ": it has no channels")
        return Flow(torch.full((dims[1],), NO_GATE), 1)

    def gate(self, node: fx.Node) -> Flow:
        module, [source] = self.module(node), self.sources(node)
        flow = self.flow[source]
        if node.target in self.shared:
            refuse(self.traced, node, f": {node.target} is called several times")
        if isinstance(module, SharedGates):
            numbers = [self.number(name, gate) for name, gate in module.gates.items()]
            table = torch.tensor([*(n for each in numbers for n in each), NO_GATE])
            return self.gated(node, source, table[module.order.cpu()[:: flow.repeat]])
        width = len(module.qz_loga)
        positions = self.features(source, width, module.axis)
        if self.is_gated(source):
            refuse(self.traced, node, ": its channels have a gate already")
        if positions is None:
            gates = torch.tensor(self.number(node.target, module))
            return self.gated(node, source, gates)
        self.positions[node] = positions
        own = flow.gates.repeat_interleave(positions)
        gates = torch.tensor(self.number(node.target, module, own))
        return Flow(gates, 1, 1, (Edge(source, How.FEATURES, torch.arange(width)),))

    def gated(self, node: fx.Node, source: fx.Node, gates: Tensor) -> Flow:
        """Behind gates of each channel."""
        flow, module, dims = self.flow[source], self.module(node), shape_of(source)
        axis = module.axis % len(dims)
        selects = flow.axis is None or getattr(module, "selects", False)
        if selects and dims[axis] == len(gates):
            return Flow(gates, axis, 1, (Edge(source, How.ALL, pick=True),))
        if flow.axis != axis or flow.width != len(gates):
            refuse(self.traced, node, f": {flow.width} channels come in")
        edge = Edge(source, How.SAME, torch.arange(flow.width))
        return Flow(gates, axis, flow.repeat, (edge,))

    def number(self, name: str, gate: L0Gate, channels: Tensor | None = None) -> range:
        """The numbers of the gates of a layer, new ones when it is met first."""
        if name not in self.gates:
            first, width = len(self.channel_gate), len(gate.qz_loga)
            self.gates[name], self.gate_layers[name] = range(first, first + width), gate
            own = torch.full((width,), NO_GATE) if channels is None else channels
            self.channel_gate = torch.cat([self.channel_gate, own])
        return self.gates[name]

    def features(self, source: fx.Node, width: int, axis: int) -> int | None:
        """Positions of each channel, where a gate layer of this width must select features, because
        what makes them cannot leave one of them out."""
        flow, dims = self.flow[source], shape_of(source)
        if flow.axis != 1 or len(dims) != 2 or axis != 1 or width != dims[1]:
            return None
        if flow.repeat > 1 or (flow.gates != NO_GATE).any():
            return flow.repeat
        while self.kinds[source] in (Kind.SCALE, Kind.ZERO, Kind.MOVE, Kind.REDUCE):
            [source] = self.sources(source)
        is_made = self.kinds[source] == Kind.INPUT or source in self.positions
        return flow.repeat if is_made else None

    def is_gated(self, source: fx.Node) -> bool:
        """Is there no room for one more gate? Features may have theirs beside that of a channel."""
        gates = self.gate_of[source].clamp(min=NO_GATE)
        if len(shape_of(source)) == 2:
            gates = self.channel_gate[gates]
        return bool((gates != NO_GATE).any())

    # Why a gate may not remove its channels

    def check_output(self, node: fx.Node) -> None:
        [result] = node.args
        if not isinstance(result, fx.Node) or result not in self.flow:
            refuse(self.traced, node, ": a network must give one tensor, its logits")
        self.note(self.gate_of[result], "is an output of the network")

    def note_losses(self, node: fx.Node, flow: Flow) -> None:
        name, kind = self.name_of(node), self.kinds[node]
        for edge in flow.edges:
            before = self.gate_of[edge.source]
            if edge.how == How.ALL:
                self.note(before, f"{name} reads all of them")
            elif edge.how == How.GROUPS:
                self.note(before, REASONS[Kind.GROUPED].format(name))
            elif edge.how == How.SAME and kind in REASONS:
                mine = edge.order >= 0
                lost = before[edge.order[mine]][before[edge.order[mine]] != flow.gates[mine]]
                self.note(lost, REASONS[kind].format(name))

    def note(self, gates: Tensor, reason: str) -> None:
        self.notes = dict.fromkeys(gates.tolist(), reason) | self.notes

    def gate_layers_of(self, gates: Tensor) -> list[str | None]:
        """The names of the layers that these gates belong to, each once; None for no gate."""
        names = [*self.gates]
        firsts = torch.tensor([numbers.start for numbers in self.gates.values()])
        order = gates[gates.diff(prepend=gates[:1] - 2) != 0]  # without what repeats the last
        places = torch.searchsorted(firsts, order, right=True) - 1
        layers = torch.where(order > NO_GATE, places, -1).tolist()
        return [None if i < 0 else names[i] for i in dict.fromkeys(layers)]


def holds_weights(module: nn.Module | None) -> bool:
    return module is None or bool(module.state_dict())


def shared(traced: fx.GraphModule) -> set[str]:
    """Modules and parameters that the graph uses in several places, by name: they cannot be cut for
    one of them."""
    calls = Counter(n.target for n in traced.graph.nodes if n.op in ("call_module", "get_attr"))
    found = {name for name, times in calls.items() if times > 1}
    for node in traced.graph.find_nodes(op="get_attr"):  # weights that code computes with
        owner = node.target.rpartition(".")[0]
        is_tensor = (isinstance(user.meta.get("value"), Tensor) for user in node.users)
        if owner in calls and any(is_tensor):
            found |= {node.target, owner}
    seen: dict[int, str] = {}
    for name, parameter in traced.named_parameters(remove_duplicate=False):
        other = seen.setdefault(id(parameter), name)
        if other != name:
            found |= {n for key in (name, other) for n in (key, key.rpartition(".")[0])}
    return found
