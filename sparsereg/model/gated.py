"""A network with gates that are drawn together."""

import torch
from torch import Tensor, fx, nn

from sparsereg.model.basic_l0_blocks import L0Gate, draw_gates, gate_layers


class GatedNetwork(nn.Module):
    """A network whose gate layers are its submodules `gates.NAME`, and which a graph computes.

    All other modules, parameters and buffers are the network's own, also those that the graph does
    not use, and so is what `train()` means to them. In training all gates are sampled at once: one
    by one they would take a step several times the operations.

    Args:
        net: the network, with the gates.
        graph: of its operations and the gates'.
        example: images that it takes, (N, C, H, W).
    """

    def __init__(self, net: nn.Module, graph: fx.Graph, example: Tensor):
        super().__init__()
        self._own = (net,)  # in a tuple, which is no submodule: each module has one name
        for each in (self, computed := nn.Module()):  # the latter has these alone
            each._modules, each._parameters = net._modules, net._parameters
            each._buffers = net._buffers
        self._computed = (computed,)
        self._non_persistent_buffers_set = net._non_persistent_buffers_set
        self.graph, self.example_images = graph, example
        self.training = net.training
        self._compute = type(
            fx.GraphModule(computed, graph)
        ).forward  # the function that fx has written

    @property
    def computed(self) -> nn.Module:
        """What the graph computes with: of other attributes it knows nothing, whatever the names
        that the network's layers have."""
        return self._computed[0]

    def train(self, mode: bool = True) -> "GatedNetwork":
        [net] = self._own
        net.train(mode)
        self.training = net.training
        return self

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

    def forward(self, images: Tensor, *, qz_loga: Tensor | None = None) -> Tensor:
        """`qz_loga`: the result of `self.qz_loga()`, where the caller needs it as well."""
        if not self.training:
            return self._compute(self.computed, images)
        self.draw(len(images), self.qz_loga() if qz_loga is None else qz_loga)
        logits = self._compute(self.computed, images)
        for gate in gate_layers(self).values():
            gate.drawn = None
        return logits
