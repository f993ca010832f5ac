"""The published formulation of the gates, written from its description, as the baseline.

One gate module for each branch; each draws its noise on the CPU, sample by sample, and copies it to
the device; four multiplications a block; P(z ≠ 0) summed gate layer by gate layer, each with two
logarithms of a tensor that `math.log` reads on the host; BatchNorm that counts its batches; tensors
in torch's default (contiguous) memory format. The mathematics is that of `sparsereg`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsereg.model.basic_l0_blocks import EPSILON, GAMMA, ZETA
from sparsereg.model.googlenet import POOL_AFTER, GoogleNet
from sparsereg.model.layers import BatchNorm


def draw_noise(samples: int, gates: int) -> Tensor:
    """u in (ε, 1-ε), (samples, gates), on the CPU."""
    return torch.empty(samples, gates).uniform_(EPSILON, 1 - EPSILON)


class ReferenceGate(nn.Module):
    """Hard-concrete gates of one branch, arXiv 1712.01312; `qz_loga` is ln α, (C,)."""

    def __init__(self, qz_loga: Tensor, temperature: float):
        super().__init__()
        self.qz_loga = nn.Parameter(qz_loga.detach().clone())
        self.temperature = temperature
        self.register_buffer("zero", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) times gates of (N, C): eq. 10."""
        u = draw_noise(x.shape[0], len(self.qz_loga)).to(x.device)
        logit = torch.log(u) - torch.log(1 - u)
        s = torch.sigmoid((logit + self.qz_loga) / self.temperature)
        z = F.hardtanh(s * (ZETA - GAMMA) + GAMMA, 0, 1)
        return x * z.view(*z.shape, 1, 1).to(x.dtype)

    def penalty(self) -> Tensor:
        """Σ P(z ≠ 0) = Σ 1 - Q(0): eq. 11 and 12."""
        x = (self.zero - GAMMA) / (ZETA - GAMMA)
        logit = math.log(x) - math.log(1 - x)
        return (1 - torch.sigmoid(logit * self.temperature - self.qz_loga)).sum()


class Reference(GoogleNet):
    """GoogleNet with the weights and gates of `net`, in the published formulation."""

    def __init__(self, net: GoogleNet):
        super().__init__(num_classes=net.head[2].out_features)
        self.load_state_dict(net.state_dict())
        for module in self.modules():
            for name, child in module.named_children():
                if isinstance(child, BatchNorm):
                    counting = nn.BatchNorm2d(child.num_features)
                    counting.load_state_dict(child.state_dict())
                    setattr(module, name, counting)
        for block in self.blocks.values():
            for name, gate in block.gates.items():
                block.gates[name] = ReferenceGate(gate.qz_loga, gate.temperature)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for number, block in enumerate(self.blocks.values(), start=1):
            x = block(x)  # every branch is multiplied by its own gate
            if number in POOL_AFTER:
                x = self.pool(x)
        return self.head(x)

    def penalty(self) -> Tensor:
        """L_C0, gate layer by gate layer."""
        total, number = 0, 0
        for gate in self.gates.values():
            total = total + gate.penalty()
            number += len(gate.qz_loga)
        return total / number
