"""What training asks of the gates: λ · expected cost, with λ set by hand or found for a target."""

import torch
from torch import Tensor, nn

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.constraint import SparsityConstraint
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import choose_open, polarise, reopen

# With a target, unless gate_lr is given: how far Adam can move ln α in the run, and at most in a
# step. Its first steps are whole ones, whatever the gradient, so larger ones would close by chance
GATE_TRAVEL, GATE_STEP = 100.0, 0.2


class GateObjective:
    """The part of the objective that is about gates, and what it does to them around a step.

    Args:
        expected_cost: of the network that is trained.
        cost: which of the expected costs is weighted, or constrained.
        lambda_l0: weight λ of the expected cost, where there is no constraint.
        lambda_warmup: epochs over which λ rises from 0.
        constraint: moves λ instead of `lambda_l0`.
        gate_lr: learning rate of the gates; None: that of the weights or, with a constraint, the
            larger of it and `GATE_TRAVEL` / steps of the run, at most `GATE_STEP`.
        min_open_channels: so many gates stay open in every bottleneck of `expected_cost`.

    Raises:
        UserError: a bottleneck is narrower than `min_open_channels`.
    """

    def __init__(
        self,
        expected_cost: ExpectedCost,
        cost: str = "channels",
        lambda_l0: float = 0.5,
        lambda_warmup: float = 0,
        constraint: SparsityConstraint | None = None,
        gate_lr: float | None = None,
        min_open_channels: int = 1,
    ):
        if min_open_channels > expected_cost.narrowest:
            raise UserError(
                f"min_open_channels={min_open_channels} must be at most {expected_cost.narrowest}, "
                "the gates of the narrowest place"
            )
        self.expected_cost = expected_cost
        self.cost = cost
        self.lambda_l0 = lambda_l0
        self.lambda_warmup = lambda_warmup
        self.constraint = constraint
        self.gate_lr = gate_lr
        self.min_open_channels = min_open_channels

    def plan(self, epochs: int, steps: int) -> None:
        """Fit what is given in epochs to the length of the run."""
        self.epochs, self.steps = epochs, steps
        if self.constraint is not None:
            self.constraint.plan(epochs, steps)

    def weight_of_cost(self, progress: float) -> Tensor:
        """λ after this share of the run."""
        if self.constraint is not None:
            return self.constraint.multiplier.clone()  # it moves before it is logged
        epochs = progress * self.epochs
        risen = min(1.0, epochs / self.lambda_warmup) if self.lambda_warmup else 1.0
        return torch.tensor(self.lambda_l0 * risen)

    @property
    def settled(self) -> bool:
        """Have the gates been fixed at the target?"""
        return self.constraint is not None and self.constraint.settled

    def settle(self, net: nn.Module, progress: float) -> None:
        """Fix the gates at the target, once, when it is time."""
        if self.constraint is None or self.settled or progress < self.constraint.settle_at:
            return
        qz_loga, target = net.qz_loga().detach(), self.constraint.target
        settings = self.expected_cost, self.cost, target, self.min_open_channels
        polarise(net, choose_open(qz_loga, *settings))
        self.constraint.settled = True

    def before_step(self, net: nn.Module, expected: Tensor, progress: float) -> None:
        """Move λ, given E[cost] (); or keep the optimizer from moving settled gates."""
        if self.settled:
            for gate in gate_layers(net).values():
                gate.qz_loga.grad = None  # so no optimizer moves them, whatever its momentum
        elif self.constraint is not None:
            self.constraint.ascend(expected, progress)

    def after_step(self, net: nn.Module) -> None:
        """Keep enough gates open."""
        if self.min_open_channels:
            reopen(net, self.expected_cost, self.min_open_channels)

    def rate(self, weights_lr: float) -> float:
        """Learning rate of the gates beside that of the weights."""
        if self.gate_lr is not None:
            return self.gate_lr
        if self.constraint is None:
            return weights_lr
        return max(weights_lr, min(GATE_TRAVEL / self.steps, GATE_STEP))  # no time to lose
