"""One graph for training and for eval mode."""

import torch
from torch import Tensor, fx, nn

from sparsereg.errors import UserError
from sparsereg.graph.nodes import check_modules, place_of, refuse
from sparsereg.graph.tracing import (
    check_batch,
    check_random,
    example_for,
    record,
    same_elsewhere,
    signature,
)
from sparsereg.recording.layers import DROPOUTS, computing_layers, simplify
from sparsereg.recording.rewrites import hold_shape


def trace_both_modes(net: nn.Module, example: Tensor | None) -> tuple[fx.GraphModule, Tensor]:
    """The graph of `net`, a private copy, in training, and the example; what the eval mode does
    otherwise is done by modules that know their mode. It leaves `net` in eval mode, in which no
    weight changes by being looked at.

    A module that records another graph in eval mode, or changes its buffers, becomes one operation.

    Raises:
        UserError: the network itself does so.
    """
    check_modules(net)
    simplify(net)
    images = example_for(net, example)
    opaque: set[str] = set()
    computing = computing_layers(net)
    while True:
        versions = {name: (buffer, buffer._version) for name, buffer in net.named_buffers()}
        net.eval()  # which may give nothing, where a network has its own
        known = {*opaque}
        evaluated, _ = record(net, images, opaque, computing)
        more = torch.cat([images, images[:1]])
        net.train()
        trained, decided = record(net, more, opaque, computing)
        if opaque != known:  # one of the two has met code that cannot be recorded
            continue
        check_random(net, evaluated)
        drawn = dict.fromkeys(trained.meta["random"], "it draws random numbers")
        changed = evaluated.meta["changed"] + trained.meta["changed"]
        changed = dict.fromkeys(changed, "it changes a buffer") | changed_buffer(net, versions)
        found = changed or drawn or differences(evaluated, trained)
        if not found:
            break
        if found.keys() <= opaque | {""}:
            net.eval()
            check_batch(net, more, evaluated, opaque)  # there were more images, too
            why = "; ".join(found.values())
            raise UserError(
                f"{type(net).__name__} does something else in training: {why}. Put what differs "
                "into a module of its own"
            )
        opaque |= found.keys() - {""}
    if decided:
        net.eval()
        check_batch(net, images[:1], evaluated, opaque)  # one for two, and for three, is known
    use_dropout_layers(net, evaluated, trained)
    if decided and not same_elsewhere(net, torch.cat([images, images[:1]]), trained):
        net.add_module(*hold_shape(trained, images, net))
    return trained.eval(), images


def changed_buffer(net: nn.Module, versions: dict) -> dict[str, str]:
    """The modules, and why: their code has changed a buffer while it was recorded."""
    found = {}
    for name, buffer in net.named_buffers():
        known = versions.get(name)
        if known is not None and (known[0] is not buffer or known[1] != buffer._version):
            found[name.rpartition(".")[0]] = f"it changes the buffer {name}"
    return found


def differences(evaluated: fx.GraphModule, trained: fx.GraphModule) -> dict[str, str]:
    """The innermost modules in which the graphs differ, and an operation of each: all of them, or
    the first one if behind that the graphs are no longer alike."""
    in_eval, in_training = signature(evaluated).values(), signature(trained)
    found: dict[str, str] = {}
    alike = len(in_eval) == len(in_training)
    for ours, (node, theirs) in zip(in_eval, in_training.items(), strict=False):
        if ours != theirs:
            what = f"{node.format_node() or node}{place_of(node)}"
            found.setdefault(owner_of(node), what)
            if not alike:
                return found
    return found


def owner_of(node: fx.Node) -> str:
    """The module whose code has called it, "" for the network itself."""
    stack = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    if node.op == "call_module":
        stack = stack[:-1]
    return stack[-1] if stack else ""


def use_dropout_layers(net: nn.Module, evaluated: fx.GraphModule, trained: fx.GraphModule) -> None:
    """`F.dropout(x, p, self.training)` would keep the mode in which it was traced, and code may
    call it in training alone: a layer in the module that calls it has its mode."""
    for node in evaluated.graph.nodes:
        if node.target in DROPOUTS and is_active(node):
            refuse(evaluated, node, ": it is random in eval mode")
    for node in [node for node in trained.graph.nodes if node.target in DROPOUTS]:
        source = node.args[0] if node.args else node.kwargs["input"]
        if is_active(node):
            p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
            owner, own = owner_of(node), node.name
            while hasattr(net.get_submodule(owner), own):
                own += "_"
            name = f"{owner}.{own}".lstrip(".")
            layer = DROPOUTS[node.target](p)
            net.get_submodule(owner).add_module(own, layer)
            trained.add_submodule(name, layer)
            with trained.graph.inserting_before(node):
                source = trained.graph.call_module(name, (source,))
            source.meta["value"] = node.meta["value"]
        node.replace_all_uses_with(source)
        trained.graph.erase_node(node)
    trained.recompile()


def is_active(dropout: fx.Node) -> bool:
    return dropout.args[2] if len(dropout.args) > 2 else dropout.kwargs.get("training", True)
