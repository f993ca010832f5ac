"""Makes a network faster for inference, with the same outputs: BatchNorm goes into the convolution
before it, and 1x1 convolutions of the same input become one."""

from operator import getitem

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparsereg.errors import UserError
from sparsereg.graph.channels import shared
from sparsereg.graph.nodes import module_of
from sparsereg.graph.operations import BATCH_NORMS, Kind, kind_of
from sparsereg.graph.tracing import trace
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.layers import channels_last
from sparsereg.recording.layers import plain_copy
from sparsereg.surgery.compaction import compare


def fold(net: nn.Module) -> fx.GraphModule:
    """A network for inference that computes what `net` computes in eval mode.

    Args:
        net: a network without gates, as `compact` returns; not changed.

    Returns:
        The network in eval mode and channels_last, not to be trained.

    Raises:
        UserError: `net` has gates, or cannot be traced; or the folded network computes something
            else, which it is tried for on noise.
    """
    if any(isinstance(module, L0Gate) for module in net.modules()):
        raise UserError("the network has gates: fold(compact(net))")
    folded = folded_of(net)
    compare(net, folded, folded_of, "folded")
    return folded


def folded_of(net: nn.Module) -> fx.GraphModule:
    """`fold` without its last comparison."""
    traced = trace(plain_copy(net))
    [images] = traced.graph.find_nodes(op="placeholder")
    traced.meta["image_shape"] = tuple(images.meta["value"].shape[1:])
    for node in traced.graph.find_nodes(op="call_method", target="view"):
        node.target = "reshape"  # which channels_last needs
    fold_batch_norms(traced)
    merge_pointwise(traced)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return channels_last(traced.requires_grad_(False))


def fold_batch_norms(traced: fx.GraphModule) -> None:
    several = shared(traced)  # whose weights others use as they are
    for node in traced.graph.find_nodes(op="call_module"):
        norm = module_of(traced, node)
        if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
            continue
        [source] = node.all_input_nodes
        conv = module_of(traced, source)
        alone = len(source.users) == 1 and source.target not in several
        if isinstance(conv, nn.Conv2d) and alone:
            traced.set_submodule(source.target, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)


def merge_pointwise(traced: fx.GraphModule) -> None:
    """One convolution, and one activation, in place of several 1x1 ones that read one tensor."""
    for node in list(traced.graph.nodes):
        groups: dict[str, list[fx.Node]] = {}
        for reader in node.users:
            if is_pointwise(module_of(traced, reader)):
                groups.setdefault(repr(activation_of(traced, reader)), []).append(reader)
        for group in groups.values():
            if len(group) > 1:
                merge(traced, node, group)


def is_pointwise(module: nn.Module | None) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    places = *module.kernel_size, *module.stride, module.groups
    return all(n == 1 for n in places) and module.padding in ((0, 0), "same", "valid")


def activation_of(traced: fx.GraphModule, conv: fx.Node) -> nn.Module | None:
    """The module that alone reads a convolution's output, if it does the same to all channels."""
    [reader, *others] = conv.users
    alone = not others and reader.op == "call_module"
    module = module_of(traced, reader)
    alike = module is not None and not module.state_dict()
    if alone and alike and kind_of(traced, reader) in (Kind.SCALE, Kind.ZERO):
        return module
    return None


def merge(traced: fx.GraphModule, source: fx.Node, convs: list[fx.Node]) -> None:
    modules = [module_of(traced, conv) for conv in convs]
    widths = [module.out_channels for module in modules]
    merged = nn.Conv2d(modules[0].in_channels, sum(widths), 1).to(modules[0].weight)
    with torch.no_grad():
        merged.weight.copy_(torch.cat([module.weight for module in modules]))
        zeros = [module.weight.new_zeros(len(module.weight)) for module in modules]
        biases = [z if m.bias is None else m.bias for z, m in zip(zeros, modules, strict=True)]
        merged.bias.copy_(torch.cat(biases))
    traced.set_submodule(convs[0].target, merged)
    ends = convs
    if activation_of(traced, convs[0]) is not None:
        ends = [next(iter(conv.users)) for conv in convs]
    with traced.graph.inserting_before(convs[0]):
        output = traced.graph.call_module(convs[0].target, (source,))
        if ends is not convs:
            output = traced.graph.call_module(ends[0].target, (output,))
        pieces = traced.graph.call_function(torch.split_with_sizes, (output, widths, 1))
        for i, end in enumerate(ends):
            end.replace_all_uses_with(traced.graph.call_function(getitem, (pieces, i)))
