"""The weights that a gate stands for, its group: what the paper's penalty multiplies P(z ≠ 0) by
(Louizos et al. 2018, arXiv 1712.01312, section 3.2)."""

import torch
from torch import Tensor, fx

from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.nodes import NO_GATE, How
from sparsereg.graph.operations import CONVOLUTIONS, Kind, is_layer
from sparsereg.model.basic_l0_blocks import SharedGates


def group_sizes(channels: ChannelGraph) -> Tensor:
    """Weights in the group of each gate, (1 + gates,), the first of no gate.

    A filter of a convolution counts its weights, in · k². Anything else, a hidden unit or a feature
    of a flattened tensor, counts those that read it: the outputs of the next linear layer. So does
    a gate that several layers share, of all of them.
    """
    sizes = torch.zeros(len(channels.channel_gate))
    for node, kind in channels.kinds.items():
        if kind == Kind.GATE and isinstance(channels.module(node), SharedGates):
            gates = channels.gate_of[node]
            sizes.index_add_(0, gates, weights_behind(channels, node).expand(len(gates)))
        elif kind == Kind.GATE:
            [source] = channels.sources(node)
            filters = None if node in channels.positions else filter_weights(channels, source)
            size = weights_behind(channels, node) if filters is None else filters
            sizes[channels.gate_of[node]] = size
    sizes[NO_GATE] = 0
    return sizes


def filter_weights(channels: ChannelGraph, node: fx.Node) -> Tensor | None:
    """Weights of the filters that make each channel, (C,); None if it is not filters alone."""
    kind, module = channels.kinds[node], channels.module(node)
    if kind in (Kind.MIX, Kind.GROUPED):
        is_conv = isinstance(module, CONVOLUTIONS)
        each = module.weight[0].numel()
        return torch.full((len(module.weight),), float(each)) if is_conv else None
    edges = channels.flow[node].edges
    if not edges or any(edge.how != How.SAME for edge in edges):
        return None
    before = [filter_weights(channels, edge.source) for edge in edges]
    if any(weights is None for weights in before):
        return None
    if kind == Kind.MOVE and channels.flow[node].repeat != channels.flow[edges[0].source].repeat:
        return None  # features of channels
    own = module.weight[0].numel() if kind == Kind.AFFINE and is_layer(module) else 0
    found = torch.full((channels.flow[node].width,), float(own))
    for edge, weights in zip(edges, before, strict=True):
        found += torch.where(edge.order < 0, 0, weights[edge.order.clamp(min=0)])
    return found


def weights_behind(channels: ChannelGraph, node: fx.Node) -> Tensor:
    """Weights with which layers read one channel of a node, ()."""
    total = torch.tensor(0.0)
    for user in node.users:
        if channels.kinds[user] in (Kind.MIX, Kind.GROUPED):
            source = channels.flow[user].edges[0].source
            total += channels.module(user).weight.numel() / len(channels.gate_of[source])
        elif channels.kinds[user] not in (Kind.OUTPUT, Kind.BARRIER, Kind.SIZE):
            total += weights_behind(channels, user)
    return total
