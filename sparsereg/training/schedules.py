"""Learning-rate schedules, as Lightning wants them; weights and gates keep their own rates."""

import math
from collections.abc import Callable

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR

from sparsereg.errors import UserError


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


def check_length(
    scheduler: Callable, batches: int, epochs: int, limit: int | float | None, accumulate: int
) -> None:
    """Raise UserError for a run that is too short, before it has a folder.

    Args:
        scheduler: one of the above, with its settings.
        batches: in the training set, of each device.
        epochs: of the run, or of its shortest part.
        limit: `trainer.limit_train_batches`, a number of batches or a share of them.
        accumulate: batches of a step.
    """
    used = batches
    if limit is not None:
        used = int(limit * batches) if isinstance(limit, float) else min(limit, batches)
    if used == 0:
        raise UserError(
            f"trainer.limit_train_batches={limit} of {batches} batches is none: "
            f"use {1 / batches:.2g} or more"
        )
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler(optimizer, math.ceil(used / accumulate) * epochs)
