"""A network with gates that are drawn together."""

import torch
from torch import Tensor, fx, nn

from sparsereg.model.basic_l0_blocks import L0Gate, draw_gates, gate_layers


class GatedNetwork(nn.Module):
    """A traced network whose gate layers are its submodules `gates.NAME`.

    All other modules have the names that they had in the network which was traced. In training
    all gates are sampled at once: one by one they would take a step several times the operations.

    Args:
        traced: a graph with `L0Gate` layers, all of the same temperature and sampling.
    """

    def __init__(self, traced: fx.GraphModule):
        super().__init__()
        for name, child in traced.named_children():
            self.add_module(name, child)
        self._compute = type(traced).forward  # the function that torch.fx has written

    @property
    def _any_gate(self) -> L0Gate:
        return next(iter(gate_layers(self).values()))

    @property
    def temperature(self) -> float:
        return self._any_gate.temperature

    def qz_loga(self) -> Tensor:
        """ln α of all gates in the order of `gate_layers`, shape (number of gates,)."""
        return torch.cat([gate.qz_loga for gate in gate_layers(self).values()])

    def draw(self, num_images: int, qz_loga: Tensor) -> None:
        """Hand each gate its part of one sample of all of them."""
        gates = gate_layers(self).values()
        num_masks = num_images if self._any_gate.sampling == "per_sample" else 1
        drawn = draw_gates(qz_loga, num_masks, self.temperature)  # (N or 1, gates)
        parts = drawn.split([len(gate.qz_loga) for gate in gates], dim=1)
        for gate, part in zip(gates, parts, strict=True):
            gate.drawn = part

    def forward(self, images: Tensor, qz_loga: Tensor | None = None) -> Tensor:
        """`qz_loga`: the result of `self.qz_loga()`, where the caller needs it as well."""
        if self.training:
            self.draw(len(images), self.qz_loga() if qz_loga is None else qz_loga)
        return self._compute(self, images)
