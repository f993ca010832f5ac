"""Parameters and multiply-adds of a network, dense and with its closed channels removed, counted on
the tensors of the networks themselves."""

import copy

import torch
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import nn

from sparsereg.errors import printable
from sparsereg.model.basic_l0_blocks import L0Gate, deterministic_gate, gate_layers
from sparsereg.sparsity.macs import count_macs
from sparsereg.surgery.compaction import cut_closed
from sparsereg.surgery.cut import Collapsed


def count(net: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """`params`, gates not counted, and `macs`, the multiply-adds of convolutions and linear layers
    for one (C, H, W) image."""
    net = copy.deepcopy(net).float().cpu().eval()
    gates = [p for m in net.modules() if isinstance(m, L0Gate) for p in m.parameters()]
    params = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in gates)
    return {"params": params, "macs": count_macs(lambda: net(torch.zeros(1, *image_shape)))}


def dense_size(net: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """`params` and `macs` with all channels open, and of a network that was cut, before that."""
    return getattr(net, "meta", {}).get("dense") or count(net, image_shape)


def open_channels(net: nn.Module) -> dict[str, int]:
    """Open gates (ẑ > 0) of each gate layer, by name; empty without gates."""
    gates = {name: gate.qz_loga.detach() for name, gate in gate_layers(net).items()}
    if not gates:
        return {}
    is_open = deterministic_gate(torch.cat(list(gates.values()))).gt(0).cpu()  # one copy for all
    layers = is_open.split([len(qz_loga) for qz_loga in gates.values()])
    return {name: int(layer.sum()) for name, layer in zip(gates, layers, strict=True)}


def open_channels_table(layers: dict[str, int]) -> Table:
    """A row for each block, where all names are block/branch, else for each layer."""
    if not all("/" in name for name in layers):
        table = Table("open channels of", "all")
        for layer, width in layers.items():
            table.add_row(Text(printable(layer)), str(width))
        return table
    branches = list(dict.fromkeys(name.split("/")[1] for name in layers))
    table = Table("open channels", *map(escape, map(printable, branches)), "all")
    for block in dict.fromkeys(name.split("/")[0] for name in layers):
        widths = [layers.get(f"{block}/{branch}") for branch in branches]  # the stem has one
        shown = ["" if width is None else str(width) for width in widths]
        table.add_row(Text(printable(block)), *shown, str(sum(filter(None, widths))))
    return table


def measure(net: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, float]:
    """`params` and `macs` of the cut network and, as `dense_…`, of the dense one it comes from;
    `sparsity` = 1 - params / dense_params.

    Nothing remains of a network that is `Collapsed`: its output is constant.
    """
    dense = dense_size(net, image_shape)
    try:
        remaining = count(cut_closed(net, image_shape=image_shape), image_shape)
    except Collapsed:
        remaining = {"params": 0, "macs": 0}
    sparsity = 1 - remaining["params"] / dense["params"]
    return {**remaining, **{f"dense_{k}": n for k, n in dense.items()}, "sparsity": sparsity}


def sparsities(net: nn.Module, size: dict[str, float]) -> dict[str, float]:
    """1 - cost of the cut network / cost of the dense one, by name of the cost, from `measure`."""
    counted = [name for name in ("params", "macs", "weights") if name in size]
    found = {name: 1 - size[name] / size[f"dense_{name}"] for name in counted}
    gates = [gate.qz_loga for gate in gate_layers(net).values()]
    if gates:
        found["channels"] = 1 - sum(open_channels(net).values()) / sum(map(len, gates))
    return found
