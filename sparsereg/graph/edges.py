"""What is known of the channels of one tensor, and how they depend on those of others."""

from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Tensor, fx

NO_GATE = 0  # gates count from 1
ALWAYS_ZERO = -1  # in place of a gate: a channel that is padding


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
