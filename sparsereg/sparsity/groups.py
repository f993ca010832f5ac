"""The weights that a gate stands for, its group: what the paper's penalty multiplies P(z ≠ 0) by
(Louizos et al. 2018, arXiv 1712.01312, section 3.2)."""

import torch
from torch import Tensor, fx, nn

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.operations import Kind


def group_sizes(channels: ChannelGraph) -> Tensor:
    """Weights in the group of each gate, (1 + gates,), the first of no gate.

    A filter of a convolution counts its weights, in · k². Anything else, a hidden unit or a feature
    of a flattened tensor, counts those that read it: the outputs of the next linear layer.
    """
    sizes = torch.zeros(len(channels.channel_gate))
    for node, kind in channels.kinds.items():
        if kind == Kind.GATE:
            [source] = channels.sources(node)
            filters = None if node in channels.positions else filter_weights(channels, source)
            size = weights_behind(channels, node) if filters is None else filters
            sizes[channels.gate_of[node]] = size
    return sizes


def filter_weights(channels: ChannelGraph, node: fx.Node) -> Tensor | None:
    """Weights of the filters that make each channel, (C,); None if it is not filters alone."""
    kind, module = channels.kinds[node], channels.module(node)
    if kind in (Kind.MIX, Kind.GROUPED):
        is_conv = isinstance(module, nn.Conv2d)
        each = module.weight[0].numel()
        return torch.full((len(module.weight),), float(each)) if is_conv else None
    if kind in (Kind.INPUT, Kind.FLATTEN):
        return None
    before = [filter_weights(channels, source) for source in channels.sources(node)]
    if any(weights is None for weights in before):
        return None
    if kind == Kind.CAT:
        return torch.cat(before)
    if kind == Kind.SELECT:
        return before[0][channels.order[node]]
    depthwise = kind == Kind.AFFINE and isinstance(module, nn.Conv2d)
    own = module.weight[0].numel() if depthwise else 0
    return (sum(before) if kind in (Kind.ADD, Kind.MUL) else before[0]) + own


def weights_behind(channels: ChannelGraph, node: fx.Node) -> Tensor:
    """Weights with which layers read one channel of a node, ()."""
    total = torch.tensor(0.0)
    for user in node.users:
        if channels.kinds[user] in (Kind.MIX, Kind.GROUPED):
            [source] = channels.sources(user)
            total += channels.module(user).weight.numel() / len(channels.gate_of[source])
        elif channels.kinds[user] != Kind.OUTPUT:
            total += weights_behind(channels, user)
    return total
