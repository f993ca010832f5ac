"""Cuts the closed channels out of a gated network.

Why not torch-pruning (1.6.1): it does not empty a branch (`check_pruning_group` refuses; forced, it
leaves a convolution with 0 outputs that cannot run), and it knows no gates between 0 and 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.operations import BATCH_NORMS
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.recording.layers import LAYERS, behind, copied, plain_copy
from sparsereg.surgery.cut import cut

SUBCLASSED = (*LAYERS, *BATCH_NORMS)
OWN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
EXACT, NEARLY = 1e-6, 1e-3  # of the largest logit, in double precision and in others


def compact(
    net: nn.Module, round_to: int = 1, image_shape: Sequence[int] | None = None
) -> fx.GraphModule:
    """The network that `net` is in eval mode, without its closed channels and without gates.

    Every closed channel is gone: from the layer that makes it, its BatchNorm, and the layers that
    read it. A branch whose channels are all closed is gone with all its layers. Gates between 0
    and 1 are multiplied into weights. Names of layers and parameters stay.

    Args:
        net: network with `L0Gate` layers, or without; not changed.
        round_to: keep so many closed channels, as zeros, that each gate layer keeps a multiple of
            `round_to`, or all of its channels, or none.
        image_shape: (C, H, W) of an image; None: as `insert_gates` had them, else some that it
            takes.

    Returns:
        The network in eval mode; it can be trained further.

    Raises:
        Collapsed: the image no longer reaches the output.
        UserError: the network cannot be traced; or the cut network computes something else, which
            it is tried for on noise.
        ValueError: `round_to` is no whole number of at least 1.
    """
    if not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to must be a whole number of at least 1, got {round_to}")
    small = cut_closed(net, round_to, image_shape)
    compare(net, small, lambda net: cut_closed(net, round_to, small.meta["image_shape"]), "cut")
    return small


def cut_closed(
    net: nn.Module, round_to: int = 1, image_shape: Sequence[int] | None = None
) -> fx.GraphModule:
    """`compact` without its last comparison."""
    example = None if image_shape is None else torch.zeros(1, *image_shape)
    channels = ChannelGraph(plain_copy(net), example)
    values = {
        name: deterministic_gate(gate.qz_loga.detach())
        for name, gate in channels.gate_layers.items()
    }
    kept = {name: round_up(value > 0, round_to) for name, value in values.items()}
    return tidy(cut(channels, values, kept))


def without_gates(net: nn.Module) -> fx.GraphModule:
    """The dense network: all channels of `net`, every gate 1; in eval mode, `net` not changed."""
    channels = ChannelGraph(plain_copy(net))
    gates = channels.gate_layers.items()
    ones = {name: torch.ones_like(gate.qz_loga.detach()) for name, gate in gates}
    return tidy(cut(channels, ones, {name: one > 0 for name, one in ones.items()}))


def tidy(small: fx.GraphModule) -> fx.GraphModule:
    """Without what nothing reads any more, ready to be used and to go into a file."""
    take_apart(small)
    small.graph.eliminate_dead_code()
    small.delete_all_unused_submodules()
    forget_unread(small)
    small.recompile()
    [images] = small.graph.find_nodes(op="placeholder")
    small.meta["image_shape"] = tuple(images.meta["value"].shape[1:])
    for node in small.graph.nodes:
        node.meta.pop("value", None)  # that of the whole network
    for node in small.graph.find_nodes(op="get_attr"):  # all that is read goes into a file
        owner, _, name = node.target.rpartition(".")
        small.get_submodule(owner)._non_persistent_buffers_set.discard(name)
    return small.eval()


def take_apart(traced: fx.GraphModule) -> None:
    """No layer within a layer: what follows a BatchNorm (`layers.behind`) is beside it."""
    nodes = traced.graph.find_nodes(op="call_module")
    layers = {node.target: traced.get_submodule(node.target) for node in nodes}
    for node in nodes:
        owner, _, last = node.target.rpartition(".")
        if owner in layers:
            name = f"{owner}_{last}"
            traced.add_submodule(name, layers[node.target])
            node.target = name
    for layer in layers.values():
        for child in behind(layer):
            layer._modules = {n: m for n, m in layer._modules.items() if m is not child}


def forget_unread(traced: fx.GraphModule) -> None:
    """Without the parameters and buffers that the code read itself, and of which nothing remains,
    and what a subclass had besides its weights (`layers.simplify`)."""
    within = tuple(f"{node.target}." for node in traced.graph.find_nodes(op="call_module"))
    read = {node.target for node in traced.graph.find_nodes(op="get_attr")}
    for name, _ in [*traced.named_parameters(), *traced.named_buffers()]:
        owner, _, last = name.rpartition(".")
        layer = traced.get_submodule(owner)
        is_own = name.startswith(within) and (not isinstance(layer, SUBCLASSED) or last in OWN)
        if name not in read and not is_own:
            delattr(layer, last)


def round_up(is_open: Tensor, multiple: int) -> Tensor:
    """`is_open` with the first closed channels added up to a multiple, unless all are closed."""
    wanted = -(-int(is_open.sum()) // multiple) * multiple
    order = torch.argsort(is_open.int(), descending=True, stable=True)  # open ones first
    kept = torch.zeros_like(is_open)
    kept[order[:wanted]] = True
    return kept


def compare(
    net: nn.Module,
    small: fx.GraphModule,
    made_of: Callable[[nn.Module], fx.GraphModule],
    what: str,
) -> None:
    """Raise UserError unless `small`, `made_of(net)`, computes what `net` does, on noise."""
    net = copied(net)
    net.eval()
    weight = next((p for p in net.parameters()), torch.zeros(0))
    if difference(net, small, weight) <= tolerance(weight.dtype):
        return  # what is farther off is tried again in double precision
    net = net.cpu().double()
    if not difference(net, made_of(net), torch.zeros(0, dtype=torch.float64)) <= EXACT:
        raise UserError(
            f"the {what} {type(net).__name__} computes something else: something in it is not what "
            "it seems. Exclude layers (exclude=…) until it does, and please report the network"
        )


@torch.no_grad()
def difference(net: nn.Module, other: fx.GraphModule, like: Tensor) -> float:
    images = noise(other.meta["image_shape"]).to(like)
    return relative_difference(net(images), other(images))


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """The largest, relative to the largest output, as it is where all are zero; of the images whose
    outputs are finite, 0 without one: then nothing can be compared."""
    finite = expected.isfinite().flatten(1).all(1)  # (N,)
    if not finite.any():
        return 0.0
    expected, found = expected[finite], found[finite]
    return (found - expected).abs().max().item() / (expected.abs().max().item() or 1.0)


def tolerance(dtype: torch.dtype) -> float:
    return EXACT if dtype == torch.float64 else NEARLY


def noise(image_shape: tuple[int, ...]) -> Tensor:
    """Three images, always the same."""
    return torch.randn(3, *image_shape, generator=torch.Generator().manual_seed(0))
