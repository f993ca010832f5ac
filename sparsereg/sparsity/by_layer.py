"""The cost of some gate layers by itself: for a λ, or a target, of each."""

from collections.abc import Iterable
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.cost import ExpectedCost


class LayerCost(nn.Module):
    """Expected cost of the gate layers that each of some patterns fits.

    Args:
        net: with the gates.
        expected_cost: of `net`.
        cost: channels or weights, which count every gate by itself.
        patterns: of names of gate layers, with * and ?.
        key: the setting that has the patterns, for messages.
        of_all: in shares of what all gates of the network cost when open; else of the layers' own.

    Raises:
        UserError: a pattern fits no layer, or two fit the same; or another cost.
    """

    def __init__(
        self,
        net: nn.Module,
        expected_cost: ExpectedCost,
        cost: str,
        patterns: Iterable[str],
        key: str,
        of_all: bool = False,
    ):
        super().__init__()
        if cost not in ("channels", "weights"):
            raise UserError(
                f"{key} by layer needs cost=channels or cost=weights, which count every gate by "
                f"itself, not cost={cost}"
            )
        self.patterns = list(patterns)
        sizes = expected_cost.group_sizes.cpu()
        price = torch.ones_like(sizes) if cost == "channels" else sizes
        is_in = which_layers(net, self.patterns, key)
        own = price * is_in  # (patterns, gates)
        dense = price.sum() if of_all else own.sum(dim=1, keepdim=True)
        self.register_buffer("shares", own / dense, persistent=False)

    def forward(self, prob_open: Tensor) -> Tensor:
        """`prob_open`: for each gate P(z ≠ 0), (gates,). Returns the costs, (patterns,)."""
        return (self.shares * prob_open).sum(dim=1)  # autocast would make @ a bfloat16 product


def which_layers(net: nn.Module, patterns: list[str], key: str) -> Tensor:
    """Which gates are in the layers that a pattern fits, (patterns, gates), 1 or 0."""
    layers = gate_layers(net)
    fits = [[float(fnmatch(name, pattern)) for name in layers] for pattern in patterns]
    for pattern, row in zip(patterns, fits, strict=True):
        if not any(row):
            raise UserError(f"{key}: no gate layer is named {pattern}: there are {names(layers)}")
    for name, column in zip(layers, zip(*fits, strict=True), strict=True):
        if sum(column) > 1:
            both = " and ".join(p for p, fit in zip(patterns, column, strict=True) if fit)
            raise UserError(f"{key}: the gate layer {name} fits {both}; it can only be in one")
    widths = torch.tensor([len(gate.qz_loga) for gate in layers.values()])
    return torch.tensor(fits).repeat_interleave(widths, dim=1)


def names(layers: dict) -> str:
    shown = ", ".join([*layers][:8])
    return shown + (f" and {len(layers) - 8} more" if len(layers) > 8 else "")
