"""The graph by which a cut network is trained: as GoogleNet's own forward, with the BatchNorms and
ReLUs of all branches of a block, and what joins them, as one operation."""

import copy

import torch
from torch import Tensor, fx, nn

from sparsereg.model.layers import BatchNorm, normalise


class Normalised(nn.Module):
    """`normalise` as a layer: one (N, C_i, H, W) for each norm -> (N, sum of C_i, H, W)."""

    def __init__(self, norms: list[BatchNorm]):
        super().__init__()
        self.norms = nn.ModuleList(norms)
        self.act_fn = nn.ReLU()

    def forward(self, *xs: Tensor) -> Tensor:
        return normalise(xs, [*self.norms], self.act_fn)


def training_graph(net: nn.Module) -> nn.Module:
    """A network of the same layers, with the same outputs and gradients to rounding.

    `net` itself, unless it has been traced and cut, and has what can be one operation.
    """
    if not isinstance(net, fx.GraphModule):
        return net
    fused = fx.GraphModule(net, copy.deepcopy(net.graph))
    for node in list(fused.graph.nodes):
        if node.target is torch.cat and is_along_channels(node):
            fuse(fused, node, node.args[0])
    for node in list(fused.graph.nodes):
        fuse(fused, node, [node])
    if not any(isinstance(module, Normalised) for module in fused.modules()):
        return net
    fused.graph.eliminate_dead_code()
    fused.recompile()
    return fused


def is_along_channels(cat: fx.Node) -> bool:
    return len(cat.args) == 2 and cat.args[1] == 1 and not cat.kwargs


def fuse(net: fx.GraphModule, last: fx.Node, ends: list[fx.Node]) -> None:
    """Let one layer do what ends with `last`, if what it joins are ReLUs of BatchNorms."""
    norms = [norm_before(net, end, last) for end in ends]
    if None in norms:
        return
    layers = [net.get_submodule(norm.target) for norm in norms]
    if len({(layer.momentum, layer.eps) for layer in layers}) > 1:
        return
    name = f"normalised_{last.name}"
    net.add_module(name, Normalised(layers))
    with net.graph.inserting_before(last):
        fused = net.graph.call_module(name, tuple(norm.args[0] for norm in norms))
    last.replace_all_uses_with(fused)


def norm_before(net: fx.GraphModule, relu: fx.Node, last: fx.Node) -> fx.Node | None:
    """The BatchNorm before a ReLU that only `last` reads, if only the ReLU reads it."""
    if layer_of(net, relu) is not nn.ReLU or (relu is not last and [*relu.users] != [last]):
        return None
    norm = relu.args[0]
    is_alone = layer_of(net, norm) is BatchNorm and [*norm.users] == [relu]
    return norm if is_alone else None


def layer_of(net: fx.GraphModule, node: fx.Node) -> type | None:
    return type(net.get_submodule(node.target)) if node.op == "call_module" else None
