"""When is a channel part of the cut network? Found once, from the channel analysis.

A channel is there if its own gate is open and somebody reads it, that is, if at least one of the
gates behind its readers is open. Whether those are read in turn is not asked again: none of them is
only if all gates of some bottleneck are closed, and then the image no longer reaches what reads it.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, fx

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.nodes import ALWAYS_ZERO, NO_GATE
from sparsereg.graph.operations import Kind
from sparsereg.graph.readers import settle
from sparsereg.graph.unreached import way_to_reader

NEVER, ALWAYS = 0, 1  # numbers of two presences


class Presence(NamedTuple):
    """The gate that must be open, and the gates of which one must be; `NO_GATE` always is.

    A channel that several gates multiply for different readers has no gate of its own here, but one
    of them must be open. To each of its readers it then counts as there: an upper bound.
    """

    gate: int
    readers: frozenset[int]


class Presences:
    """The `Presence` of each channel of each tensor in a traced network.

    Attributes:
        of: for each node, the numbers of its channels' presences, (C,).
        table: the presence of each number; None for a channel that nothing reads.
        conditions: of each number, gates of which one is open whenever the channel is there.
    """

    def __init__(self, channels: ChannelGraph):
        self.table: list[Presence | None] = [None]
        self.conditions: list[frozenset[int]] = [frozenset()]
        self.numbers: dict[Presence, int] = {}
        self.sets: dict[frozenset[int], frozenset[int]] = {}
        # large sets, and so the same questions, come again and again
        self.union, self.one_of = cache(self.union), cache(self.one_of)
        self.of_gates = cache(self.of_gates)
        self.number(Presence(NO_GATE, frozenset([NO_GATE])))  # ALWAYS
        self.of: dict[fx.Node, Tensor] = settle(
            channels, self.read, self.either, self.lift, ALWAYS, NEVER, self.within
        )
        for node, kind in channels.kinds.items():
            if kind == Kind.MIX:
                self.may_be_constant(channels, node)

    def number(self, presence: Presence) -> int:
        gate, readers = presence
        if gate == NO_GATE and len(readers) == 1:  # which is as if it were its own
            [gate] = readers
        if gate in readers:
            presence = Presence(gate, frozenset([NO_GATE]))
        if presence not in self.numbers:
            self.numbers[presence] = len(self.table)
            self.table.append(presence)
            gate, readers = presence
            self.conditions.append(readers if gate == NO_GATE else frozenset([gate]))
        return self.numbers[presence]

    def read(self, gates: Tensor, layer: Tensor | None) -> Tensor:
        """A layer reads what is not zero, if any of its own channels is there."""
        if layer is None:
            return torch.full_like(gates, ALWAYS)
        if not (layer != NEVER).any():
            return torch.full_like(gates, NEVER)
        return self.of_gates(tuple(gates.tolist()), self.one_open(layer))

    def of_gates(self, gates: tuple[int, ...], readers: frozenset[int]) -> Tensor:
        numbers = {ALWAYS_ZERO: NEVER}
        for gate in sorted({*gates}):
            numbers.setdefault(gate, self.number(Presence(gate, readers)))
        return torch.tensor([numbers[gate] for gate in gates])

    def within(self, carried: Tensor, asked: Tensor) -> Tensor:
        """What an operation takes along is there only while something reads its result."""
        if torch.equal(carried, asked):
            return carried
        readers, numbers = self.one_open(asked), {NEVER: NEVER}
        if readers == {NO_GATE}:
            return carried
        for number in carried.unique().tolist():
            gate, others = self.table[number] or (NO_GATE, frozenset())
            if others == {NO_GATE} or readers < others:
                numbers[number] = self.number(Presence(gate, readers))
        return torch.tensor([numbers.get(n, n) for n in carried.tolist()])

    def lift(self, channel: Tensor, own: Tensor, asked: Tensor) -> Tensor:
        """A feature that its own gate closes reads its channel while that gate is open."""
        lifted = asked.clone()
        for i, (gate, feature, number) in enumerate(
            zip(channel.tolist(), own.tolist(), asked.tolist(), strict=True)
        ):
            if number != NEVER and self.table[number].gate == feature:
                lifted[i] = self.number(Presence(gate, frozenset([feature])))
        return lifted

    def either(self, first: Tensor, second: Tensor) -> Tensor:
        """What two readers need together."""
        found = torch.maximum(first, second)  # right where one is NEVER, and where both are equal
        differ = (first != second) & (torch.minimum(first, second) != NEVER)
        pairs = zip(first[differ].tolist(), second[differ].tolist(), strict=True)
        found[differ] = torch.tensor([self.one_of(a, b) for a, b in pairs], dtype=found.dtype)
        return found

    def one_of(self, a: int, b: int) -> int:
        first, second = self.table[a], self.table[b]
        if first.gate == second.gate:
            return self.number(Presence(first.gate, self.union(first.readers, second.readers)))
        return self.number(Presence(NO_GATE, self.union(self.conditions[a], self.conditions[b])))

    def one_open(self, numbers: Tensor) -> frozenset[int]:
        """Gates of which one is open whenever one of these channels is there."""
        return self.union(*(self.conditions[n] for n in numbers.unique().tolist() if n != NEVER))

    def union(self, *sets: frozenset[int]) -> frozenset[int]:
        """`NO_GATE` is always open, so beside it the others do not matter. Equal sets are one
        object, which is fast to compare."""
        both = frozenset().union(*sets)
        both = frozenset([NO_GATE]) if NO_GATE in both else both
        return self.sets.setdefault(both, both)

    def may_be_constant(self, channels: ChannelGraph, layer: fx.Node) -> None:
        """If closed inputs leave a constant of a layer (`constants`), it is there, with what makes
        its output ready for the addition, only while one of the inputs is open."""
        inputs = frozenset(channels.gate_of[channels.sources(layer)[0]].tolist())
        way = None if NO_GATE in inputs else way_to_reader(channels, layer)
        for node in way[:-1] if way else []:
            for number in self.of[node].unique().tolist():
                gate, readers = self.table[number] or (NO_GATE, frozenset())
                if readers == {NO_GATE}:
                    only_then = self.number(Presence(gate, inputs))
                    self.of[node] = torch.where(self.of[node] == number, only_then, self.of[node])


def bottlenecks(channels: ChannelGraph) -> list[list[int]]:
    """Sets of gates through which everything goes that some layer reads: were all of one set
    closed, the image would not reach that layer."""
    layers = [node for node, kind in channels.kinds.items() if kind == Kind.MIX]
    read_by = [channels.gate_of[channels.sources(node)[0]] for node in layers]
    sets = {tuple(gates.unique().tolist()) for gates in read_by}
    return [list(gates) for gates in sorted(sets) if NO_GATE not in gates]


def branch_ends(channels: ChannelGraph, presences: Presences) -> list[list[int]]:
    """Sets of gates of which one is open whenever a gated layer is read that alone reads something:
    were all of one set closed, that would count on, because the gates of the layer are open."""
    sets = set()
    for node, kind in channels.kinds.items():
        if kind in (Kind.MIX, Kind.GROUPED):
            rows, before = (
                [presences.table[n] for n in presences.of[each].unique().tolist() if n != NEVER]
                for each in (node, channels.sources(node)[0])
            )
            own = {row.gate for row in rows} - {NO_GATE}
            readers = presences.union(*(row.readers for row in rows))
            if NO_GATE not in readers and any(row.readers <= own for row in before):
                sets.add(tuple(sorted(readers)))
    return [list(gates) for gates in sorted(sets)]
