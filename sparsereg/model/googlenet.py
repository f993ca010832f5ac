"""A small GoogleNet for 32x32 images, with an L0 gate on every channel of every inception branch.

Inception: Szegedy et al. 2015, arXiv 1409.4842; gates: Louizos et al. 2018, arXiv 1712.01312.
The dense network has 260,650 parameters, 32 gate layers and 832 gates.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsereg.model.basic_l0_blocks import (
    L0Gate,
    deterministic_gate,
    draw_gates,
)

STEM_CHANNELS = 64
REDUCE = ((32, 16),) * 6 + ((48, 16),) * 2  # channels of the 1x1 reductions before 3x3 and 5x5
WIDTHS = (  # output channels of the branches of each block
    (16, 32, 8, 8),
    (24, 48, 12, 12),
    (24, 48, 12, 12),
    (16, 48, 16, 16),
    (16, 48, 16, 16),
    (32, 48, 24, 24),
    (32, 64, 16, 16),
    (32, 64, 16, 16),
)
BRANCHES = ("1x1", "3x3", "5x5", "max")
POOL_AFTER = (2, 6)  # blocks followed by a stride-2 max-pool

ACTIVATIONS = {  # name: (module, gain of the Kaiming initialisation)
    "relu": (lambda: nn.ReLU(inplace=True), nn.init.calculate_gain("relu")),
    "leakyrelu": (lambda: nn.LeakyReLU(inplace=True), nn.init.calculate_gain("leaky_relu")),
    "gelu": (nn.GELU, nn.init.calculate_gain("relu")),
    "tanh": (nn.Tanh, nn.init.calculate_gain("tanh")),
}


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d without counting batches, which a fixed momentum never reads.

    The 49 counters of the network would be 49 more operations a step.
    """

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        affine = self.weight, self.bias
        return F.batch_norm(x, *statistics, *affine, self.training, self.momentum, self.eps)


def conv_bn_act(c_in: int, c_out: int, kernel_size: int, act_fn_name: str) -> nn.Sequential:
    """Convolution, BatchNorm, activation: (N, c_in, H, W) -> (N, c_out, H, W)."""
    act_fn, gain = ACTIVATIONS[act_fn_name]
    conv = nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=gain / (c_in * kernel_size**2) ** 0.5)  # Kaiming, fan-in
    return nn.Sequential(conv, BatchNorm(c_out), act_fn())


class InceptionBlock(nn.Module):
    """Four parallel branches, concatenated: (N, c_in, H, W) -> (N, sum(widths), H, W).

    A branch of width 0 does not exist, nor does its reduction. `gates` holds one L0Gate for each
    existing branch, in the order of the concatenation; GoogleNet draws them all at once.
    """

    def __init__(
        self,
        c_in: int,
        reduce: Sequence[int],
        widths: Sequence[int],
        act_fn_name: str,
        gate: Callable[[int], L0Gate] | None,
    ):
        super().__init__()
        r3, r5 = reduce
        w1, w3, w5, wm = widths

        def conv(c_in, c_out, kernel_size):
            return conv_bn_act(c_in, c_out, kernel_size, act_fn_name)

        self.branches = nn.ModuleDict()
        if w1:
            self.branches["1x1"] = conv(c_in, w1, 1)
        if w3:
            self.branches["3x3"] = nn.Sequential(conv(c_in, r3, 1), conv(r3, w3, 3))
        if w5:
            self.branches["5x5"] = nn.Sequential(conv(c_in, r5, 1), conv(r5, w5, 5))
        if wm:
            pool = nn.MaxPool2d(3, stride=1, padding=1)
            self.branches["max"] = nn.Sequential(pool, conv(c_in, wm, 1))
        self.gates = nn.ModuleDict()
        if gate is not None:
            self.gates.update(
                {name: gate(w) for name, w in zip(BRANCHES, widths, strict=True) if w}
            )

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """`gates`: values for this block's channels, (N or 1, sum(widths)), or None."""
        x = torch.cat([branch(x) for branch in self.branches.values()], dim=1)
        return x if gates is None else x * gates[:, :, None, None]


class GoogleNet(nn.Module):
    """Image classifier: `net(images)` maps (N, 3, H, W) to logits (N, num_classes).

    Args:
        num_classes: classes of the linear layer.
        act_fn_name: relu, leakyrelu, gelu or tanh.
        without_using_gate: build no gates at all; the state dict then has no `qz_loga`.
        droprate_init, temperature, sampling: see `L0Gate`.
        widths: output channels of [1x1, 3x3, 5x5, max] for each of the eight blocks.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        act_fn_name: str = "relu",
        without_using_gate: bool = False,
        droprate_init: float = 0.5,
        temperature: float = 2 / 3,
        sampling: str = "per_sample",
        widths: Sequence[Sequence[int]] = WIDTHS,
    ):
        super().__init__()
        if act_fn_name not in ACTIVATIONS:
            raise ValueError(
                f"act_fn_name must be one of {', '.join(ACTIVATIONS)}, got {act_fn_name!r}"
            )
        self.temperature = temperature
        self.sampling = sampling
        self.block_widths = [sum(width) for width in widths]

        def gate(width):
            return L0Gate(width, droprate_init, temperature, sampling)

        self.stem = conv_bn_act(3, STEM_CHANNELS, 3, act_fn_name)
        self.blocks = nn.ModuleDict()
        c_in = STEM_CHANNELS
        for number, (reduce, width) in enumerate(zip(REDUCE, widths, strict=True), start=1):
            self.blocks[f"block{number}"] = InceptionBlock(
                c_in, reduce, width, act_fn_name, None if without_using_gate else gate
            )
            c_in = sum(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, num_classes)
        )

    @property
    def gates(self) -> dict[str, L0Gate]:
        """The gate layers by name ("block1/1x1"), in the order of the channels they multiply."""
        return {
            f"{block_name}/{name}": gate
            for block_name, block in self.blocks.items()
            for name, gate in block.gates.items()
        }

    def qz_loga(self) -> Tensor | None:
        """ln α of all gates, shape (number of gates,); None without gates."""
        gates = self.gates
        return torch.cat([gate.qz_loga for gate in gates.values()]) if gates else None

    def block_gates(self, x: Tensor, qz_loga: Tensor | None) -> list[Tensor | None]:
        """Values of all gates for the batch `x`, drawn at once: one (N or 1, C) for each block."""
        if qz_loga is None:
            return [None] * len(self.blocks)
        if self.training:
            num_masks = len(x) if self.sampling == "per_sample" else 1
            gates = draw_gates(qz_loga, num_masks, self.temperature)
        else:
            gates = deterministic_gate(qz_loga).unsqueeze(0)
        return gates.to(x.dtype).split(self.block_widths, dim=1)

    def forward(self, images: Tensor, qz_loga: Tensor | None = None) -> Tensor:
        """`qz_loga`: the result of `self.qz_loga()`, where the caller needs it as well."""
        x = self.stem(images)  # (N, 64, H, W)
        all_gates = self.block_gates(x, self.qz_loga() if qz_loga is None else qz_loga)
        blocks = zip(self.blocks.values(), all_gates, strict=True)
        for number, (block, gates) in enumerate(blocks, start=1):
            x = block(x, gates)  # (N, sum of the block's widths, H, W)
            if number in POOL_AFTER:
                x = self.pool(x)  # halves H and W
        return self.head(x)  # (N, num_classes)
