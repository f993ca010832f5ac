"""Learning rates: of weights and gates, which keep their own, and their schedules, as Lightning
wants them."""

import math

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR

from sparsereg.errors import UserError


def param_groups(
    net: nn.Module, lr: float | None = None, gate_lr: float | None = None
) -> list[dict]:
    """Parameter groups for any optimizer: the weights of `net`, and the gates, with their own
    learning rate and without weight decay, which would pull ln α to 0, a gate half open.

        optimizer = torch.optim.AdamW(param_groups(net, lr=1e-3, gate_lr=0.05), weight_decay=1e-4)

    Args:
        net: a network, with gates or without.
        lr: learning rate of the weights; None: that of the optimizer.
        gate_lr: of the gates; None: that of the weights. A short run needs a larger one, see
            `TargetSparsity.rate`.
    """
    weights, gates = [], []
    for name, parameter in net.named_parameters():
        (gates if name.endswith("qz_loga") else weights).append(parameter)
    groups = [({"params": weights, "name": "weights"}, lr)]
    if gates:
        group = {"params": gates, "name": "gates", "weight_decay": 0.0}
        groups.append((group, lr if gate_lr is None else gate_lr))
    return [group if rate is None else group | {"lr": rate} for group, rate in groups]


def constant(optimizer: Optimizer, total_steps: int) -> dict:
    """The learning rates stay as they are."""
    return {"scheduler": LambdaLR(optimizer, lambda epoch: 1.0), "interval": "epoch"}


def multistep(optimizer: Optimizer, total_steps: int, milestones: list[int], gamma: float) -> dict:
    """Multiply the learning rates by `gamma` after each of the `milestones` (epochs)."""
    return {"scheduler": MultiStepLR(optimizer, list(milestones), gamma), "interval": "epoch"}


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    pct_start: float,
    div_factor: float,
    final_div_factor: float,
) -> dict:
    """One cycle over the run (Smith and Topin 2018, arXiv 1708.07120).

    Each parameter group peaks at its own learning rate.

    Raises:
        UserError: the run has too few steps to rise.
    """
    if pct_start * total_steps <= 1:
        raise UserError(
            f"scheduler.pct_start={pct_start} of {total_steps} steps is too short to rise: train "
            f"for {math.floor(1 / pct_start) + 1} steps or more, or choose a larger share"
        )
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = OneCycleLR(
        optimizer,
        peaks,
        total_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )
    return {"scheduler": scheduler, "interval": "step"}
