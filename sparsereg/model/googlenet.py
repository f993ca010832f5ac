"""A small GoogleNet for 32x32 images, with an L0 gate on every channel of every inception branch.

Inception: Szegedy et al. 2015, arXiv 1409.4842; gates: Louizos et al. 2018, arXiv 1712.01312.
The dense network has 260,650 parameters, 32 gate layers and 832 gates.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsereg import choices
from sparsereg.model import fused
from sparsereg.model.basic_l0_blocks import L0Gate, draw_gates
from sparsereg.model.layers import BatchNorm, MaxPool, normalise

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
POOL_AFTER = (2, 6)  # blocks followed by a stride-2 max-pool

ACTIVATIONS = {  # name: (module, gain of the Kaiming initialisation)
    "relu": (lambda: nn.ReLU(inplace=True), nn.init.calculate_gain("relu")),
    "leakyrelu": (lambda: nn.LeakyReLU(inplace=True), nn.init.calculate_gain("leaky_relu")),
    "gelu": (nn.GELU, nn.init.calculate_gain("relu")),
    "tanh": (nn.Tanh, nn.init.calculate_gain("tanh")),
}
assert tuple(ACTIVATIONS) == choices.ACTIVATIONS, "the names that act_fn_name may have"


class ConvNormAct(nn.Sequential):
    """Convolution, BatchNorm, activation: (N, c_in, H, W) -> (N, c_out, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, act_fn = self
        return normalise([conv(x)], [norm], act_fn)


def conv_bn_act(c_in: int, c_out: int, kernel_size: int, act_fn_name: str) -> ConvNormAct:
    act_fn, gain = ACTIVATIONS[act_fn_name]
    conv = nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=gain / (c_in * kernel_size**2) ** 0.5)  # Kaiming, fan-in
    return ConvNormAct(conv, BatchNorm(c_out), act_fn())


class InceptionBlock(nn.Module):
    """Four parallel branches, concatenated: (N, c_in, H, W) -> (N, sum(widths), H, W).

    `gates` holds one L0Gate for each branch, in the order of the concatenation, or none;
    `reduction_gates` those of the 1x1 reductions of the 3x3 and the 5x5 branch, or none.
    """

    def __init__(
        self,
        c_in: int,
        reduce: Sequence[int],
        widths: Sequence[int],
        act_fn_name: str,
        gate: Callable[[int], L0Gate] | None,
        gate_reductions: bool = False,
    ):
        super().__init__()
        r3, r5 = reduce
        w1, w3, w5, wm = widths

        def conv(c_in, c_out, kernel_size):
            return conv_bn_act(c_in, c_out, kernel_size, act_fn_name)

        pool = MaxPool()
        self.branches = nn.ModuleDict(
            {
                "1x1": conv(c_in, w1, 1),
                "3x3": nn.Sequential(conv(c_in, r3, 1), conv(r3, w3, 3)),
                "5x5": nn.Sequential(conv(c_in, r5, 1), conv(r5, w5, 5)),
                "max": nn.Sequential(pool, conv(c_in, wm, 1)),
            }
        )
        self.gates, self.reduction_gates = nn.ModuleDict(), nn.ModuleDict()
        if gate is not None:
            self.gates.update({n: gate(w) for n, w in zip(self.branches, widths, strict=True)})
            if gate_reductions:
                self.reduction_gates.update({"3x3": gate(r3), "5x5": gate(r5)})
        self.gate_widths = [sum(widths)] if self.gates else []
        self.gate_widths += [len(gate.qz_loga) for gate in self.reduction_gates.values()]

    def forward(self, x: Tensor, drawn: Sequence[Tensor] = ()) -> Tensor:
        """`drawn`: values of all gates of the block, (N or 1, C) for C in `gate_widths`, that
        GoogleNet has drawn with those of the other blocks; none: every gate has its own. Those of
        the outputs, the first, are left to GoogleNet."""
        last = [self.branches["1x1"], *(self.branches[name][1] for name in ("3x3", "5x5", "max"))]
        convs, norms, act_fns = zip(*last, strict=True)
        is_trace = isinstance(x, fx.Proxy)  # which shows the branches one by one, to insert_gates
        if drawn or (self.training and not self.gates and not is_trace):
            first, reduced = self.pointwise(x) if fused.takes(x) else (None, self.reduce(x))
            inputs = [*self.gate_reduced(reduced, drawn[1:]), self.branches["max"][0](x)]
            first = convs[0](x) if first is None else first
            outputs = [first, *(conv(y) for conv, y in zip(convs[1:], inputs, strict=True))]
            return normalise(outputs, norms, act_fns[0])
        inputs = [x, *self.gate_reduced(self.reduce(x), ()), self.branches["max"][0](x)]
        outputs = [layer(y) for layer, y in zip(last, inputs, strict=True)]
        if self.gates:
            outputs = [gate(y) for gate, y in zip(self.gates.values(), outputs, strict=True)]
        return torch.cat(outputs, dim=1)

    def reduce(self, x: Tensor) -> list[Tensor]:
        """The 1x1 reductions before the 3x3 and the 5x5 convolution."""
        return [self.branches[name][0](x) for name in ("3x3", "5x5")]

    def pointwise(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the 1x1 convolutions make of x, as one convolution: that of the 1x1 branch, without
        its BatchNorm, and the two reductions. For kernels that need no copy of each part."""
        branches = self.branches["1x1"], self.branches["3x3"][0], self.branches["5x5"][0]
        convs, norms, act_fns = zip(*branches, strict=True)
        weight, bias = (torch.cat([getattr(c, n) for c in convs]) for n in ("weight", "bias"))
        y = F.conv2d(x, weight, bias).split([conv.out_channels for conv in convs], dim=1)
        reduced = zip(y[1:], norms[1:], act_fns[1:], strict=True)
        return y[0], [normalise([y], [norm], act_fn) for y, norm, act_fn in reduced]

    def gate_reduced(self, reduced: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of the 3x3 and of the 5x5 convolution, (N, width of the reduction, H, W)."""
        if drawn:
            return [y * z[:, :, None, None] for y, z in zip(reduced, drawn, strict=True)]
        if self.reduction_gates:
            gates = self.reduction_gates.values()
            return [gate(y) for gate, y in zip(gates, reduced, strict=True)]
        return list(reduced)


class GoogleNet(nn.Module):
    """Image classifier: `net(images)` maps (N, C, H, W) to logits (N, num_classes).

    Args:
        num_classes: classes of the linear layer.
        act_fn_name: relu, leakyrelu, gelu or tanh.
        without_using_gate: build no gates at all; the state dict then has no `qz_loga`.
        gate_reductions: gates on the 1x1 reductions too, not only on the branches' outputs.
        droprate_init, temperature, sampling: see `L0Gate`.
        image_shape: (C, H, W) of the images; only C matters.
        gate_stem: gates on the channels of the stem too.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        act_fn_name: str = "relu",
        without_using_gate: bool = False,
        gate_reductions: bool = False,
        droprate_init: float = 0.5,
        temperature: float = 2 / 3,
        sampling: str = "per_sample",
        image_shape: Sequence[int] = (3, 32, 32),
        gate_stem: bool = False,
    ):
        super().__init__()
        if act_fn_name not in ACTIVATIONS:
            raise ValueError(
                f"act_fn_name must be one of {', '.join(ACTIVATIONS)}, got {act_fn_name!r}"
            )
        self.temperature = temperature
        self.sampling = sampling

        def gate(width):
            return L0Gate(width, droprate_init, temperature, sampling)

        self.stem = conv_bn_act(image_shape[0], STEM_CHANNELS, 3, act_fn_name)
        self.stem_gates = nn.ModuleDict()
        if gate_stem and not without_using_gate:
            self.stem_gates["3x3"] = gate(STEM_CHANNELS)
        self.blocks = nn.ModuleDict()
        c_in = STEM_CHANNELS
        for number, (reduce, width) in enumerate(zip(REDUCE, WIDTHS, strict=True), start=1):
            self.blocks[f"block{number}"] = InceptionBlock(
                c_in,
                reduce,
                width,
                act_fn_name,
                None if without_using_gate else gate,
                gate_reductions,
            )
            c_in = sum(width)
        self.pool = MaxPool(stride=2)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, num_classes)
        )

    @property
    def gates(self) -> dict[str, L0Gate]:
        """The gate layers by name ("block1/1x1", "block1/reduce3x3"): that of the stem, then for
        each block those of its outputs in their order, then those of its reductions."""
        gates = {f"stem/{name}": gate for name, gate in self.stem_gates.items()}
        for block_name, block in self.blocks.items():
            gates |= {f"{block_name}/{name}": gate for name, gate in block.gates.items()}
            reductions = block.reduction_gates.items()
            gates |= {f"{block_name}/reduce{name}": gate for name, gate in reductions}
        return gates

    def qz_loga(self) -> Tensor | None:
        """ln α of all gates, shape (number of gates,); None without gates."""
        gates = self.gates
        return torch.cat([gate.qz_loga for gate in gates.values()]) if gates else None

    def draw_all_gates(self, x: Tensor, qz_loga: Tensor) -> list[list[Tensor]]:
        """Samples of all gates for the batch `x`, drawn at once: (N or 1, C) of the stem, if it has
        any, and of each block."""
        num_masks = len(x) if self.sampling == "per_sample" else 1
        gates = draw_gates(qz_loga, num_masks, self.temperature)
        widths = [[len(gate.qz_loga) for gate in self.stem_gates.values()]]
        widths += [block.gate_widths for block in self.blocks.values()]
        pieces = iter(gates.to(x.dtype).split(list(chain(*widths)), dim=1))
        return [[next(pieces) for _ in block] for block in widths]

    def forward(self, images: Tensor, qz_loga: Tensor | None = None) -> Tensor:
        """`qz_loga`: the result of `self.qz_loga()`, where the caller needs it as well."""
        x = self.stem(images)  # (N, 64, H, W)
        stem_drawn, *drawn = [[]] * (1 + len(self.blocks))
        if self.training and self.gates:
            qz_loga = self.qz_loga() if qz_loga is None else qz_loga
            stem_drawn, *drawn = self.draw_all_gates(x, qz_loga)
        if stem_drawn:
            x = x * stem_drawn[0][:, :, None, None]
        elif self.stem_gates:
            x = self.stem_gates["3x3"](x)
        blocks = zip(self.blocks.values(), drawn, strict=True)
        for number, (block, block_drawn) in enumerate(blocks, start=1):
            x = block(x, block_drawn)  # (N, sum of the block's widths, H, W)
            if number in POOL_AFTER:
                x = self.pool(x)  # halves H and W
            if block_drawn:  # z ≥ 0 only scales a maximum: after the pooling there is less to do
                x = x * block_drawn[0][:, :, None, None]
        return self.head(x)  # (N, num_classes)
