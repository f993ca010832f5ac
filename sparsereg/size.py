"""Parameters and multiply-adds of a network with its closed channels removed, counted on the cut
network itself: a network of the remaining widths, built without memory on the meta device."""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.model.googlenet import BRANCHES, WIDTHS, GoogleNet

Widths = tuple[tuple[int, ...], ...]


def open_channels(net: GoogleNet) -> dict[str, int]:
    """Open gates (ẑ > 0) of each gate layer, by name; empty without gates."""
    if not net.gates:
        return {}
    is_open = deterministic_gate(net.qz_loga().detach()).gt(0).cpu()
    layers = is_open.split([len(gate.qz_loga) for gate in net.gates.values()])
    return {name: int(layer.sum()) for name, layer in zip(net.gates, layers, strict=True)}


def open_widths(net: GoogleNet) -> Widths:
    """Open channels of [1x1, 3x3, 5x5, max] for each block; all of them without gates."""
    if not net.gates:
        return WIDTHS
    count = open_channels(net)
    return tuple(tuple(count[f"{block}/{branch}"] for branch in BRANCHES) for block in net.blocks)


@cache
def count(widths: Widths, num_classes: int, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Parameters, and multiply-adds of convolutions and linear layer for one (C, H, W) image.

    When every channel of a block is closed the logits no longer depend on the image: what remains
    is a constant for each class.
    """
    if not all(map(sum, widths)):
        return num_classes, 0
    with torch.device("meta"):
        net = GoogleNet(num_classes, without_using_gate=True, widths=widths).eval()
        image = torch.empty(1, *image_shape)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        net(image)
    return sum(p.numel() for p in net.parameters()), flops.get_total_flops() // 2


def measure(net: GoogleNet, image_shape: tuple[int, int, int]) -> dict[str, float]:
    """`params` and `macs` of the cut and the dense network; `sparsity` = 1 - params ratio."""
    num_classes = net.head[-1].out_features
    params, macs = count(open_widths(net), num_classes, image_shape)
    dense_params, dense_macs = count(WIDTHS, num_classes, image_shape)
    return {
        "params": params,
        "macs": macs,
        "dense_params": dense_params,
        "dense_macs": dense_macs,
        "sparsity": 1 - params / dense_params,
    }
