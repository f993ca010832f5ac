"""Hard-concrete gates: L0 regularization by gradient descent (Louizos, Welling, Kingma 2018,
arXiv 1712.01312).

A gate z in [0, 1] multiplies a channel. Its parameter is ln α = `qz_loga`. In training z is a
differentiable sample that is exactly 0 or 1 with positive probability; at test time it is
deterministic. P(z ≠ 0) has a closed form, so the expected number of open gates (the expected L0
norm) can be minimised by gradient descent.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsereg.choices import SAMPLING

GAMMA, ZETA = -0.1, 1.1  # limits of the stretched concrete distribution, paper section 4.1
EPSILON = 1e-6  # noise u stays in (ε, 1-ε), where its logit is finite
GATES = "gates"  # the submodule under which a network has them that `insert_gates` has put in


def sample_hard_concrete(qz_loga: Tensor, uniform: Tensor, temperature: float = 2 / 3) -> Tensor:
    """Sample of the hard-concrete distribution, eq. 10 of arXiv 1712.01312.

    s = σ((log u - log(1-u) + log α) / β),  z = clamp(s(ζ-γ) + γ, 0, 1)

    Args:
        qz_loga: ln α, shape (C,).
        uniform: noise u in (0, 1), shape broadcastable to (…, C).
        temperature: β in (0, 1].

    Returns:
        Gates z in [0, 1], shape of `uniform` and `qz_loga` broadcast.
    """
    s = torch.sigmoid((torch.logit(uniform) + qz_loga) / temperature)
    return torch.clamp(s * (ZETA - GAMMA) + GAMMA, 0, 1)


def prob_nonzero(qz_loga: Tensor, temperature: float = 2 / 3) -> Tensor:
    """P(z ≠ 0) = σ(log α - β log(-γ/ζ)), eq. 12 of arXiv 1712.01312; the shape of `qz_loga`."""
    return torch.sigmoid(qz_loga - temperature * math.log(-GAMMA / ZETA))


def deterministic_gate(qz_loga: Tensor) -> Tensor:
    """Gate at test time, ẑ = clamp(σ(log α)(ζ-γ) + γ, 0, 1), eq. 13; the shape of `qz_loga`.

    As in the paper, the temperature does not enter. The gate is open when ẑ > 0.
    """
    return torch.clamp(torch.sigmoid(qz_loga) * (ZETA - GAMMA) + GAMMA, 0, 1)


def draw_gates(qz_loga: Tensor, num_masks: int, temperature: float = 2 / 3) -> Tensor:
    """`num_masks` independent samples of all gates, shape (num_masks, C).

    The noise is float32, whatever autocast is active (bfloat16 cannot represent 1 - ε), and comes
    from the default generator of the device of `qz_loga`.
    """
    uniform = torch.empty(num_masks, len(qz_loga), device=qz_loga.device, dtype=torch.float32)
    return sample_hard_concrete(qz_loga, uniform.uniform_(EPSILON, 1 - EPSILON), temperature)


def multiply(x: Tensor, gates: Tensor, axis: int = 1) -> Tensor:
    """`x` with its channels, along `axis`, multiplied by `gates`, (N or 1, C). Of several parts of
    each image, windows say, k · N in the first dimension of `x`, k have one sample."""
    if 1 < len(gates) != len(x):
        gates = gates.repeat_interleave(len(x) // len(gates), dim=0)
    shape = [1] * x.dim()
    shape[0], shape[axis] = gates.shape
    return x * gates.view(shape).to(x.dtype)


class L0Gate(nn.Module):
    """Hard-concrete gates on the channels of an (N, C, …) tensor.

    Place it after the activation: a bias or BatchNorm shift behind it would survive a closed gate.
    In training each channel is multiplied by a sample (`sample_hard_concrete`), in eval mode by
    the `deterministic_gate`.

    Args:
        mask_dim: number of gates, C.
        droprate_init: d in (0, 1); ln α starts at Normal(log((1-d)/d), 0.01²).
        temperature: β in (0, 1].
        sampling: "per_sample" draws a mask for each sample (N, C), "per_batch" one for all.
        axis: dimension of the channels, -1 for (N, …, C).

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        mask_dim: int,
        droprate_init: float = 0.5,
        temperature: float = 2 / 3,
        sampling: str = "per_sample",
        axis: int = 1,
    ):
        super().__init__()
        if not 0 < droprate_init < 1:
            raise ValueError(f"droprate_init must be between 0 and 1, got {droprate_init}")
        if not 0 < temperature <= 1:
            raise ValueError(f"temperature must be above 0 and at most 1, got {temperature}")
        if sampling not in SAMPLING:
            raise ValueError(f"sampling must be one of {', '.join(SAMPLING)}, got {sampling!r}")
        self.temperature = temperature
        self.sampling = sampling
        self.axis = axis
        self.drawn: Tensor | None = None  # this step's sample, where a network draws all at once
        mean = math.log((1 - droprate_init) / droprate_init)
        self.qz_loga = nn.Parameter(torch.normal(mean, 0.01, (mask_dim,)))  # (C,)

    def values(self, num_images: int) -> Tensor:
        """The gates, (N or 1, C)."""
        if self.drawn is not None:
            return self.drawn
        if self.training:
            num_masks = num_images if self.sampling == "per_sample" else 1
            return draw_gates(self.qz_loga, num_masks, self.temperature)
        return deterministic_gate(self.qz_loga).unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) -> (N, C, …), channel c multiplied by gate c."""
        return multiply(x, self.values(len(x)), self.axis)

    def extra_repr(self) -> str:
        return (
            f"{len(self.qz_loga)}, temperature={self.temperature:.3g}, sampling={self.sampling!r}"
        )


class SharedGates(nn.Module):
    """Multiplies the channels of a tensor by gates that other tensors share: one gate for each
    channel of a residual stream, at every layer that reads it.

    Args:
        gates: the gate layers by the names that they have elsewhere, in a network that draws their
            values (`GatedNetwork`).
        order: for each channel the number of its gate among theirs, -1 for none, (C,).
        axis: dimension of the channels.
        selects: what makes them has to leave them all; the cut network selects those that remain.
    """

    def __init__(
        self, gates: Mapping[str, L0Gate], order: Tensor, axis: int = 1, selects: bool = False
    ):
        super().__init__()
        self.gates = dict(gates)  # no submodules: each parameter has one name
        self.axis, self.selects = axis, selects
        self.register_buffer("order", order, persistent=False)
        width = sum(len(gate.qz_loga) for gate in gates.values())
        self.is_all = len(gates) == 1 and torch.equal(order, torch.arange(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) -> (N, C, …)"""
        gates = [gate.values(len(x)) for gate in self.gates.values()]
        if self.is_all:
            return multiply(x, gates[0], self.axis)
        gates.append(torch.ones_like(gates[0][:, :1]))  # at -1
        joint = torch.cat(gates, dim=1)
        order = self.order.remainder(joint.shape[1])
        return multiply(x, joint.index_select(1, order), self.axis)


def gate_layers(net: nn.Module) -> dict[str, L0Gate]:
    """The gate layers of a network, by the names it gives them in `net.gates`, else by module,
    which for inserted gates is the layer that they close channels of."""
    own = getattr(net, GATES, None)
    if isinstance(own, dict):
        return own
    gates = {name: m for name, m in net.named_modules() if isinstance(m, L0Gate)}
    return {name.removeprefix(f"{GATES}."): gate for name, gate in gates.items()}
