"""Cuts the closed channels out of a gated network.

Why not torch-pruning (1.6.1): it does not empty a branch (`check_pruning_group` refuses; forced, it
leaves a convolution with 0 outputs that cannot run), and it knows no gates between 0 and 1.
"""

from pathlib import Path

import torch
from torch import Tensor, fx, nn

from sparsereg.checkpoint import is_compact, load_weights, new_network, read_checkpoint
from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.layers import plain_copy
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.surgery.cut import Collapsed, cut
from sparsereg.surgery.folding import fold

__all__ = ["Collapsed", "compact", "fold", "load_compact", "without_gates"]


def compact(net: nn.Module, round_to: int = 1) -> fx.GraphModule:
    """The network that `net` is in eval mode, without its closed channels and without gates.

    Every closed channel is gone: from the layer that makes it, its BatchNorm, and the layers that
    read it. A branch whose channels are all closed is gone with all its layers. Gates between 0
    and 1 are multiplied into weights. Names of layers and parameters stay.

    Args:
        net: network with `L0Gate` layers, or without; not changed.
        round_to: keep so many closed channels, as zeros, that each gate layer keeps a multiple of
            `round_to`, or all of its channels, or none.

    Returns:
        The network in eval mode; it can be trained further.

    Raises:
        Collapsed: all channels that some layer reads are closed.
        UserError: an operation through which channels cannot be followed.
        ValueError: `round_to` is no whole number of at least 1.
    """
    if not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to must be a whole number of at least 1, got {round_to}")
    channels = ChannelGraph(plain_copy(net))
    values = {
        name: deterministic_gate(gate.qz_loga.detach())
        for name, gate in channels.gate_layers.items()
    }
    kept = {name: round_up(value > 0, round_to) for name, value in values.items()}
    return cut(channels, values, kept)


def without_gates(net: nn.Module) -> fx.GraphModule:
    """The dense network: all channels of `net`, every gate 1; in eval mode, `net` not changed."""
    channels = ChannelGraph(plain_copy(net))
    gates = channels.gate_layers.items()
    ones = {name: torch.ones_like(gate.qz_loga.detach()) for name, gate in gates}
    return cut(channels, ones, {name: one > 0 for name, one in ones.items()})


def load_compact(path: str | Path) -> nn.Module:
    """The network of a compact file, in eval mode on the CPU, from this file alone.

    Raises:
        UserError: missing, damaged or foreign file, or a checkpoint that is not compact.
    """
    checkpoint = read_checkpoint(path)
    if not is_compact(checkpoint):
        raise UserError(f"{path} is not cut yet: python compact.py ckpt_path={path}")
    net = new_network(checkpoint)
    load_weights(net, checkpoint)
    return net.eval()


def round_up(is_open: Tensor, multiple: int) -> Tensor:
    """`is_open` with the first closed channels added up to a multiple, unless all are closed."""
    wanted = -(-int(is_open.sum()) // multiple) * multiple
    order = torch.argsort(is_open.int(), descending=True, stable=True)  # open ones first
    kept = torch.zeros_like(is_open)
    kept[order[:wanted]] = True
    return kept
