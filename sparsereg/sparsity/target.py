"""A sparsity to end at: λ is found, and in the end the gates are fixed."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.sparsity.by_layer import LayerCost
from sparsereg.sparsity.constraint import TOLERANCE, SparsityConstraint
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.objective import GateObjective
from sparsereg.sparsity.selection import choose_open, choose_open_by_layer, polarise

# With a target, unless gate_lr is given: how far Adam can move ln α in the run, and at most in a
# step. Its first steps are whole ones, whatever the gradient, so larger ones would close by chance
GATE_TRAVEL, GATE_STEP = 100.0, 0.2


class TargetSparsity(GateObjective):
    """λ · E[cost] with a λ that is found, so that the network ends at a sparsity.

    λ is a Lagrange multiplier (Gallego-Posada et al. 2022, arXiv 2208.04425), see
    `SparsityConstraint`. In the last part of the run, or when `settle` is called, the gates are
    fixed at the target and the weights adapt: nothing moves them then.

    The target is of the whole network, or by layer: {pattern of gate layers: target}, for the
    layers' own cost. A layer that no pattern fits has none.

    Args:
        net: the network that is trained, with `L0Gate` layers.
        image_shape: (C, H, W) of an image.
        target: sparsity in (0, 1): 0.6 is 60 % less.
        cost: of what: "channels", "params", "macs" or "weights".
        steps: how often the optimizer steps in the whole run; None: `plan` will say it.
        epochs: of the run, the unit of the following two; with 1 they are shares of the run.
        target_warmup: epochs over which the target rises from 0; None: four tenths of the run.
        settle_epochs: last epochs, with fixed gates; None: four tenths of the run.
        dual_lr: how fast λ rises while the target is missed; None: see `SparsityConstraint`.
        gate_lr: learning rate of the gates, see `rate`.
        min_open_channels: so many gates stay open in every bottleneck of the network.
        loga_bounds: lowest and highest ln α, kept after each step until the gates are fixed.

    Raises:
        UserError: no gates, an unknown cost, a bottleneck narrower than `min_open_channels`, a
            target outside (0, 1), or patterns that do not fit, see `LayerCost`.
    """

    def __init__(
        self,
        net: nn.Module,
        image_shape: Sequence[int],
        target: float | Mapping[str, float],
        cost: str = "channels",
        steps: int | None = None,
        epochs: float = 1,
        target_warmup: float | None = None,
        settle_epochs: float | None = None,
        dual_lr: float | None = None,
        gate_lr: float | None = None,
        min_open_channels: int = 1,
        loga_bounds: Sequence[float] | None = None,
        expected_cost: ExpectedCost | None = None,
    ):
        settings = gate_lr, min_open_channels, loga_bounds, expected_cost
        super().__init__(net, image_shape, cost, *settings)
        targets = list(target.values()) if isinstance(target, Mapping) else target
        for value in targets if isinstance(target, Mapping) else [target]:
            if not 0 < value < 1:
                raise UserError(f"target={value} must be above 0 and below 1 (0.6 is 60 % less)")
        device = self.expected_cost.order.device
        self.target = target
        self.constraint = SparsityConstraint(targets, dual_lr, target_warmup, settle_epochs)
        self.constraint.to(device)
        if isinstance(target, Mapping):
            settings = net, self.expected_cost, cost, target, "target_sparsity"
            self.layer_cost = LayerCost(*settings).to(device)
        if steps is not None:
            self.plan(epochs, steps)
            self.settle_in_time()

    def plan(self, epochs: float, steps: int) -> None:
        super().plan(epochs, steps)
        self.constraint.plan(epochs, steps)

    def weight_of_cost(self) -> Tensor:
        return self.constraint.multiplier.clone()  # it moves before it is logged

    @property
    def settled(self) -> bool:
        """Have the gates been fixed at the target?"""
        return self.constraint.settled

    def settle_in_time(self) -> None:
        if not self.settled and self.progress >= self.constraint.settle_at:
            self.settle()

    def settle(self) -> None:
        """Fix the gates at the target, now."""
        polarise(self.net, self.choose(self.qz_loga().detach()))
        self.constraint.settled = True

    def choose(self, qz_loga: Tensor) -> Tensor:
        """The gates that stay open, (gates,), given ln α of all."""
        min_open = self.min_open_channels
        if self.layer_cost is None:
            return choose_open(qz_loga, self.expected_cost, self.cost, self.target, min_open)
        targets = list(self.target.values())
        settings = self.expected_cost, self.layer_cost.shares, targets, min_open
        return choose_open_by_layer(qz_loga, *settings)

    def step(self) -> None:
        if self.settled:  # the optimizer may have moved them, by their gradient or its momentum
            polarise(self.net, self.qz_loga() > 0)
        super().step()

    def before_step(self) -> None:
        """Move λ; or keep the optimizer from moving settled gates, if it has yet to step."""
        if not self.settled:
            self.constraint.ascend(self.weighed, self.progress)
            return
        for gate in self.gates:
            gate.qz_loga.grad = None  # so no optimizer moves them, whatever its momentum

    def rate(self, weights_lr: float) -> float:
        """Learning rate of the gates beside that of the weights: `gate_lr`, or the larger of the
        weights' and `GATE_TRAVEL` / steps of the run, at most `GATE_STEP`."""
        if self.gate_lr is not None:
            return self.gate_lr
        return max(weights_lr, min(GATE_TRAVEL / self.steps, GATE_STEP))  # no time to lose

    def check_reach(self) -> None:
        """Raise UserError for a target that closing gates of the network cannot lead to."""
        smallest = self.expected_cost.smallest(self.cost, self.min_open_channels)
        present = self.sparsity(deterministic_gate(self.qz_loga().detach()) > 0)
        highest = self.sparsity(smallest)
        targets = self.target if self.layer_cost is not None else {"": self.target}
        for layer, target in targets.items():
            if target > highest[layer]:
                raise UserError(self.out_of_reach(layer, target, highest[layer]))
            if present[layer] > target + TOLERANCE:
                raise UserError(
                    f"{self.asked(layer, target)}, but the gates start at {present[layer]:.4f} "
                    f"(cost={self.cost}): choose a higher target, or open gates with "
                    "keep_gates=false and a small droprate_init"
                )

    def asked(self, layer: str, target: float) -> str:
        return f"target_sparsity={target}" + (f" of {layer}" if layer else "")

    def out_of_reach(self, layer: str, target: float, highest: float) -> str:
        """What to say of a target that is higher than the highest."""
        return (
            f"{self.asked(layer, target)} of cost={self.cost} is out of reach: with the gates of "
            f"this network and min_open_channels={self.min_open_channels} the highest is "
            f"{math.floor(highest * 10_000) / 10_000}"
        )
