"""What training asks of the gates: λ · expected cost, beside the loss of the task.

In a loop of one's own, with `L0Penalty` or `TargetSparsity` as `penalty`:

    loss = cross_entropy(net(images), labels) + penalty.penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    penalty.step()
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsereg.choices import COSTS
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers, prob_nonzero
from sparsereg.sparsity.by_layer import LayerCost
from sparsereg.sparsity.constraint import SparsityConstraint
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import keep_within, reopen


class GateObjective:
    """What `L0Penalty` and `TargetSparsity` share: all but where λ comes from.

    Args:
        net: the network that is trained, with `L0Gate` layers.
        image_shape: (C, H, W) of an image.
        cost: which of the expected costs is weighed, see `choices.COSTS`.
        gate_lr: learning rate of the gates; None: see `rate`.
        min_open_channels: so many gates stay open in every bottleneck of the network.
        loga_bounds: lowest and highest ln α, kept after each step.
        expected_cost: of the network, for costs that have to be measured; None: `ExpectedCost`.

    Raises:
        UserError: no gates, an unknown cost, or a bottleneck narrower than `min_open_channels`.
    """

    constraint: SparsityConstraint | None = None
    layer_cost: LayerCost | None = None
    settled = False
    """Have the gates been fixed at the target?"""
    target: float | Mapping[str, float] | None = None

    def __init__(
        self,
        net: nn.Module,
        image_shape: Sequence[int],
        cost: str,
        gate_lr: float | None,
        min_open_channels: int,
        loga_bounds: Sequence[float] | None,
        expected_cost: ExpectedCost | None = None,
    ):
        self.gates = list(gate_layers(net).values())
        if not self.gates:
            raise UserError(
                f"{type(net).__name__} has no gates: net = sparsereg.insert_gates(net, images) "
                "gives it some"
            )
        if cost not in COSTS:
            raise UserError(f"cost={cost} must be one of {', '.join(COSTS)}")
        self.net, self.cost = net, cost
        if expected_cost is None:
            expected_cost = ExpectedCost(net, tuple(image_shape))
        self.expected_cost = expected_cost.to(self.gates[0].qz_loga.device)
        if cost not in self.expected_cost.dense:
            raise UserError(f"cost={cost} is measured: give expected_cost=ExpectedLatency(…)")
        if min_open_channels > self.expected_cost.narrowest:
            raise UserError(
                f"min_open_channels={min_open_channels} must be at most "
                f"{self.expected_cost.narrowest}, the gates of the narrowest place"
            )
        self.gate_lr = gate_lr
        self.min_open_channels = min_open_channels
        self.loga_bounds = loga_bounds
        self.done = 0  # steps of the optimizer
        self.epochs, self.steps = None, None

    def plan(self, epochs: float, steps: int) -> None:
        """Fit what is given in epochs to the length of the run, in epochs and optimizer steps."""
        self.epochs, self.steps = epochs, steps

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        if self.steps is None:
            raise ValueError("steps=… is needed: how often the optimizer steps in the whole run")
        return self.done / self.steps

    def qz_loga(self) -> Tensor:
        """ln α of all gates, (gates,)."""
        return torch.cat([gate.qz_loga for gate in self.gates])

    def prob_open(self, qz_loga: Tensor) -> Tensor:
        """P(z ≠ 0) of each gate, (gates,)."""
        return prob_nonzero(qz_loga, self.gates[0].temperature)

    def costs(self, prob_open: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Every expected cost, and the one that λ weighs, () or by layer (patterns,).

        `prob_open`: for each gate P(z ≠ 0), (gates,).
        """
        expected = self.expected_cost(prob_open)
        weighed = expected[self.cost] if self.layer_cost is None else self.layer_cost(prob_open)
        return expected, weighed

    def penalty(self, qz_loga: Tensor | None = None) -> Tensor:
        """λ · E[cost], summed over layers that have their own, (): to be added to the loss.

        What it was made of stays, detached: `expected`, of each cost, and `weight`, λ.

        `qz_loga`: ln α of all gates, where the caller has it already.
        """
        qz_loga = self.qz_loga() if qz_loga is None else qz_loga
        self.follow(qz_loga.device)
        expected, weighed = self.costs(self.prob_open(qz_loga))
        self.weight = self.weight_of_cost().to(weighed.device)
        self.weighed = weighed.detach()
        self.expected = {name: cost.detach() for name, cost in expected.items()}
        return (self.weight * weighed).sum()

    def follow(self, device: torch.device) -> None:
        """To the device of the network, if that has been moved."""
        if self.expected_cost.order.device != device:
            for part in (self.expected_cost, self.constraint, self.layer_cost):
                if part is not None:
                    part.to(device)

    def weight_of_cost(self) -> Tensor:
        """λ of this step, () or by layer (patterns,)."""
        raise NotImplementedError  # L0Penalty is told λ, TargetSparsity finds it

    def step(self) -> None:
        """After each step of the optimizer: moves λ, keeps enough gates open and, when it is time,
        fixes all of them at the target."""
        self.before_step()
        self.after_step()
        self.done += 1
        self.settle_in_time()

    def before_step(self) -> None:
        """Move λ, where it moves."""

    def after_step(self) -> None:
        """Keep ln α within its bounds, and enough gates open."""
        if self.loga_bounds is not None and not self.settled:
            keep_within(self.net, *self.loga_bounds)
        if self.min_open_channels:
            reopen(self.net, self.expected_cost, self.min_open_channels)

    def settle(self) -> None:
        """Fix the gates at the target; without one they stay as they are."""

    def settle_in_time(self) -> None:
        """Settle, once, when it is time."""

    def rate(self, weights_lr: float) -> float:
        """Learning rate of the gates beside that of the weights."""
        return weights_lr if self.gate_lr is None else self.gate_lr

    def sparsity(self, is_open: Tensor) -> dict[str, float]:
        """What is asked for, with these gates (gates,): by pattern, "" for the network."""
        if self.layer_cost is None:
            return {"": self.expected_cost.sparsity(is_open)[self.cost]}
        costs = self.layer_cost(is_open.to(self.layer_cost.shares)).tolist()
        found = [round(1 - c, 6) for c in costs]  # in single precision: 0.95, not 0.9499999
        return dict(zip(self.layer_cost.patterns, found, strict=True))

    def state_dict(self) -> dict:
        """What a loop that is to go on from a checkpoint has to save, in plain types."""
        state = {"done": self.done}
        return state | ({"constraint": self.constraint.state_dict()} if self.constraint else {})

    def load_state_dict(self, state: dict) -> None:
        self.done = state["done"]
        if self.constraint is not None:
            self.constraint.load_state_dict(state["constraint"])


class L0Penalty(GateObjective):
    """λ · E[cost] with a λ that is set by hand (Louizos et al. 2018, arXiv 1712.01312).

    λ is of the whole network, or by layer: {pattern of gate layers: λ}; a layer that no pattern
    fits has none. By layer the penalty is the sum of λ · the layers' share of the network's cost,
    so that equal λ give what one λ gives.

    Args:
        net: the network that is trained, with `L0Gate` layers.
        image_shape: (C, H, W) of an image.
        lambda_l0: λ.
        cost: which expected cost it weighs, as a share of the dense one: "channels" (the paper's
            L_C0), "params", "macs" or "weights".
        lambda_warmup: epochs over which λ rises from 0.
        gate_lr: learning rate of the gates, see `rate`; None: that of the weights.
        min_open_channels: so many gates stay open in every bottleneck of the network.
        loga_bounds: lowest and highest ln α, kept after each step.
        steps: how often the optimizer steps in the whole run; only `lambda_warmup` needs it.
        epochs: of the run, the unit of `lambda_warmup`; with 1 that is a share of the run.

    Raises:
        UserError: no gates, an unknown cost, a bottleneck narrower than `min_open_channels`, or
            patterns that do not fit, see `LayerCost`.
    """

    def __init__(
        self,
        net: nn.Module,
        image_shape: Sequence[int],
        lambda_l0: float | Mapping[str, float] = 0.5,
        cost: str = "channels",
        lambda_warmup: float = 0,
        gate_lr: float | None = None,
        min_open_channels: int = 1,
        loga_bounds: Sequence[float] | None = None,
        steps: int | None = None,
        epochs: float = 1,
        expected_cost: ExpectedCost | None = None,
    ):
        settings = gate_lr, min_open_channels, loga_bounds, expected_cost
        super().__init__(net, image_shape, cost, *settings)
        self.lambda_l0, self.lambda_warmup = lambda_l0, lambda_warmup
        if isinstance(lambda_l0, Mapping):
            settings = net, self.expected_cost, cost, lambda_l0, "lambda_l0"
            self.layer_cost = LayerCost(*settings, of_all=True).to(self.expected_cost.order.device)
            self.lambda_l0 = torch.tensor(list(lambda_l0.values()), dtype=torch.float32)
        self.plan(epochs, steps)

    def weight_of_cost(self) -> Tensor:
        risen = 1.0
        if self.lambda_warmup:
            risen = min(1.0, self.progress * self.epochs / self.lambda_warmup)
        return torch.as_tensor(self.lambda_l0 * risen)
