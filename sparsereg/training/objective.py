"""What training asks of the gates: λ · expected cost, with λ set by hand or found for a target."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers
from sparsereg.sparsity.by_layer import LayerCost
from sparsereg.sparsity.constraint import TOLERANCE, SparsityConstraint
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import (
    choose_open,
    choose_open_by_layer,
    keep_within,
    polarise,
    reopen,
)

# With a target, unless gate_lr is given: how far Adam can move ln α in the run, and at most in a
# step. Its first steps are whole ones, whatever the gradient, so larger ones would close by chance
GATE_TRAVEL, GATE_STEP = 100.0, 0.2


class GateObjective:
    """The part of the objective that is about gates, and what it does to them around a step.

    λ and the target are of the whole network, or by layer: {pattern of gate layers: λ or target}. A
    layer that no pattern fits has λ = 0, or no target. By layer the penalty is the sum of λ · the
    layers' share of the network's cost, so that equal λ give what one λ gives; a target is for the
    layers' own cost, and each has its own multiplier.

    Args:
        net: the network that is trained.
        expected_cost: of `net`.
        cost: which of the expected costs is weighted, or constrained.
        lambda_l0: weight λ of the expected cost, where there is no target.
        lambda_warmup: epochs over which λ rises from 0.
        target_sparsity: that the run is to end at; λ is then found.
        dual_lr, target_warmup, settle_epochs: see `SparsityConstraint`.
        gate_lr: learning rate of the gates; None: that of the weights or, with a target, the larger
            of it and `GATE_TRAVEL` / steps of the run, at most `GATE_STEP`.
        min_open_channels: so many gates stay open in every bottleneck of `expected_cost`.
        loga_bounds: lowest and highest ln α, kept after each step.

    Raises:
        UserError: a bottleneck is narrower than `min_open_channels`; or see `LayerCost`.
    """

    def __init__(
        self,
        net: nn.Module,
        expected_cost: ExpectedCost,
        cost: str = "channels",
        lambda_l0: float | Mapping[str, float] = 0.5,
        lambda_warmup: float = 0,
        target_sparsity: float | Mapping[str, float] | None = None,
        dual_lr: float | None = None,
        target_warmup: float | None = None,
        settle_epochs: float | None = None,
        gate_lr: float | None = None,
        min_open_channels: int = 1,
        loga_bounds: Sequence[float] | None = None,
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
        self.target = target_sparsity
        self.gate_lr = gate_lr
        self.min_open_channels = min_open_channels
        self.loga_bounds = loga_bounds
        self.constraint, self.layer_cost = None, None
        if target_sparsity is not None:
            target, by_layer = target_sparsity, isinstance(target_sparsity, Mapping)
            target = list(target.values()) if by_layer else target
            self.constraint = SparsityConstraint(target, dual_lr, target_warmup, settle_epochs)
            if by_layer:
                settings = net, expected_cost, cost, target_sparsity, "target_sparsity"
                self.layer_cost = LayerCost(*settings)
        elif isinstance(lambda_l0, Mapping):
            settings = net, expected_cost, cost, lambda_l0, "lambda_l0"
            self.layer_cost = LayerCost(*settings, of_all=True)
            self.lambda_l0 = torch.tensor(list(lambda_l0.values()), dtype=torch.float32)

    def costs(self, prob_open: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Every expected cost, and the one that λ weighs, () or by layer (patterns,).

        `prob_open`: for each gate P(z ≠ 0), (gates,).
        """
        expected = self.expected_cost(prob_open)
        weighed = expected[self.cost] if self.layer_cost is None else self.layer_cost(prob_open)
        return expected, weighed

    def plan(self, epochs: int, steps: int) -> None:
        """Fit what is given in epochs to the length of the run."""
        self.epochs, self.steps = epochs, steps
        if self.constraint is not None:
            self.constraint.plan(epochs, steps)

    def weight_of_cost(self, progress: float) -> Tensor:
        """λ after this share of the run, () or by layer (patterns,)."""
        if self.constraint is not None:
            return self.constraint.multiplier.clone()  # it moves before it is logged
        epochs = progress * self.epochs
        risen = min(1.0, epochs / self.lambda_warmup) if self.lambda_warmup else 1.0
        return torch.as_tensor(self.lambda_l0 * risen)

    @property
    def settled(self) -> bool:
        """Have the gates been fixed at the target?"""
        return self.constraint is not None and self.constraint.settled

    def settle(self, net: nn.Module, progress: float) -> None:
        """Fix the gates at the target, once, when it is time."""
        if self.constraint is None or self.settled or progress < self.constraint.settle_at:
            return
        qz_loga, min_open = net.qz_loga().detach(), self.min_open_channels
        if self.layer_cost is None:
            is_open = choose_open(qz_loga, self.expected_cost, self.cost, self.target, min_open)
        else:
            targets = list(self.target.values())
            settings = self.expected_cost, self.layer_cost.shares, targets, min_open
            is_open = choose_open_by_layer(qz_loga, *settings)
        polarise(net, is_open)
        self.constraint.settled = True

    def before_step(self, net: nn.Module, expected: Tensor, progress: float) -> None:
        """Move λ, given what it weighs; or keep the optimizer from moving settled gates."""
        if self.settled:
            for gate in gate_layers(net).values():
                gate.qz_loga.grad = None  # so no optimizer moves them, whatever its momentum
        elif self.constraint is not None:
            self.constraint.ascend(expected, progress)

    def after_step(self, net: nn.Module) -> None:
        """Keep ln α within its bounds, and enough gates open."""
        if self.loga_bounds is not None and not self.settled:
            keep_within(net, *self.loga_bounds)
        if self.min_open_channels:
            reopen(net, self.expected_cost, self.min_open_channels)

    def rate(self, weights_lr: float) -> float:
        """Learning rate of the gates beside that of the weights."""
        if self.gate_lr is not None:
            return self.gate_lr
        if self.constraint is None:
            return weights_lr
        return max(weights_lr, min(GATE_TRAVEL / self.steps, GATE_STEP))  # no time to lose

    def sparsity(self, is_open: Tensor) -> dict[str, float]:
        """What the target is for, with these gates (gates,): by pattern, "" for the network."""
        if self.layer_cost is None:
            return {"": self.expected_cost.sparsity(is_open)[self.cost]}
        costs = self.layer_cost(is_open.to(self.layer_cost.shares)).tolist()
        found = [round(1 - c, 6) for c in costs]  # in single precision: 0.95, not 0.9499999
        return dict(zip(self.layer_cost.patterns, found, strict=True))

    def check_reach(self, net: nn.Module) -> None:
        """Raise UserError for a target that closing gates of `net` cannot lead to."""
        if self.target is None:
            return
        smallest = self.expected_cost.smallest(self.cost, self.min_open_channels)
        qz_loga = torch.cat([gate.qz_loga.detach() for gate in gate_layers(net).values()])
        highest, present = self.sparsity(smallest), self.sparsity(deterministic_gate(qz_loga) > 0)
        targets = self.target if self.layer_cost is not None else {"": self.target}
        for layer, target in targets.items():
            asked = f"target_sparsity={target}" + (f" of {layer}" if layer else "")
            if target > highest[layer]:
                raise UserError(
                    f"{asked} of cost={self.cost} is out of reach: with the gates of this network "
                    f"and min_open_channels={self.min_open_channels} the highest is "
                    f"{math.floor(highest[layer] * 10_000) / 10_000}"
                )
            if present[layer] > target + TOLERANCE:
                raise UserError(
                    f"{asked}, but the gates start at {present[layer]:.4f} (cost={self.cost}): "
                    "choose a higher target, or open gates with keep_gates=false and a small "
                    "droprate_init"
                )
