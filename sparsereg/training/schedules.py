"""Learning-rate schedules, as Lightning wants them; weights and gates keep their own rates."""

from torch.optim import Optimizer
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
            f"scheduler.pct_start={pct_start} of {total_steps} steps is too short to rise: "
            "train longer or choose a larger share"
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
