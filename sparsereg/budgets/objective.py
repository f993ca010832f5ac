"""What is asked of the gates, from the settings: λ by hand, a sparsity, a size or a time."""

from typing import Any

from torch import nn

from sparsereg.budgets.clock import Clock
from sparsereg.budgets.latency import ExpectedLatency
from sparsereg.budgets.size import TargetSize
from sparsereg.budgets.target_latency import TargetLatency
from sparsereg.commands.settings import budget_of
from sparsereg.commands.values import amount
from sparsereg.sparsity.objective import GateObjective, L0Penalty
from sparsereg.sparsity.target import TargetSparsity

ALWAYS = ("gate_lr", "min_open_channels", "loga_bounds")
BY_HAND = ("lambda_l0", "lambda_warmup")
OF_TARGET = ("dual_lr", "target_warmup", "settle_epochs")


def new_objective(
    settings: dict[str, Any], net: nn.Module, image_shape: tuple[int, int, int]
) -> GateObjective:
    """The objective that plain settings describe.

    Raises:
        UserError: see the objectives.
    """
    budget, cost = budget_of(settings), settings["cost"]
    own = {key: settings[key] for key in ALWAYS + (OF_TARGET if budget else BY_HAND)}
    if budget in ("target_params", "target_macs"):
        return TargetSize(net, image_shape, amount(settings[budget]), cost, **own)
    clock = Clock(**settings["latency"]) if cost == "latency" else None
    if budget == "target_latency":
        return TargetLatency(net, image_shape, clock, milliseconds=settings[budget], **own)
    if budget == "target_speedup":
        return TargetLatency(net, image_shape, clock, speedup=settings[budget], **own)
    own |= {"cost": cost}
    if clock is not None:
        own["expected_cost"] = ExpectedLatency(net, image_shape, clock)
    if budget is None:
        return L0Penalty(net, image_shape, **own)
    return TargetSparsity(net, image_shape, settings[budget], **own)
