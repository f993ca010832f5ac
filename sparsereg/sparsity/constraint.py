"""A sparsity that is asked for: λ becomes a Lagrange multiplier (Gallego-Posada et al. 2022,
*Controlled Sparsity via Constrained Optimization*, arXiv 2208.04425)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsereg.choices import SETTLED, TARGET_WARMUP

TOLERANCE = 0.01  # by which a sparsity may miss its target
DUAL_TRAVEL = 200.0  # default of dual_lr · (1 - target) · steps: higher targets need a larger λ


class SparsityConstraint(nn.Module):
    """Keeps the expected cost below a bound that falls from 1 to 1 - target.

        min over weights and gates, max over λ ≥ 0:  cross-entropy + λ · (E[cost] - bound)

    by gradient descent and ascent. λ restarts at 0 whenever the target is met (their "dual
    restarts"), so it does not go on pressing for what has been overcome. That is two lines here;
    cooper-optim, the authors' library, would want to own the optimizers and the training step.

    The expected cost is not yet that of the cut network. So in the last epochs of the run the gates
    are settled: those that the target leaves open are fixed (`selection`), and the weights adapt.

    Args:
        target: sparsity in (0, 1), or several, each with a λ of its own.
        dual_lr: rate of the ascent, per step; None: `DUAL_TRAVEL` / (1 - target) / steps.
        target_warmup: epochs in which the bound falls; None: `TARGET_WARMUP` of the run.
        settle_epochs: epochs with settled gates; None: `SETTLED` of the run.
    """

    def __init__(
        self,
        target: float | Sequence[float],
        dual_lr: float | None = None,
        target_warmup: float | None = None,
        settle_epochs: float | None = None,
    ):
        super().__init__()
        if isinstance(target, Sequence):
            self.register_buffer("target", torch.tensor(target), persistent=False)
        else:
            self.target = target
        self.dual_lr = dual_lr
        self.target_warmup = target_warmup
        self.settle_epochs = settle_epochs
        self.settled = False
        self.register_buffer("multiplier", torch.zeros(torch.as_tensor(target).shape))  # λ

    def get_extra_state(self) -> dict:
        return {"settled": self.settled}

    def set_extra_state(self, state: dict) -> None:
        self.settled = state["settled"]

    def plan(self, epochs: int, steps: int) -> None:
        """Fit the defaults, and what is given in epochs, to the length of the run."""
        warmup, settle = self.target_warmup, self.settle_epochs
        fitting = DUAL_TRAVEL / (1 - self.target) / steps
        self.rate = fitting if self.dual_lr is None else self.dual_lr
        last_step = (steps - 1) / steps
        self.settle_at = min(1 - (SETTLED if settle is None else settle / epochs), last_step)
        self.warmup = min(TARGET_WARMUP, self.settle_at) if warmup is None else warmup / epochs

    def bound(self, progress: float) -> float | Tensor:
        """The expected cost that is allowed after this share of the run, () or (targets,)."""
        return 1 - self.target * (min(1.0, progress / self.warmup) if self.warmup else 1.0)

    def ascend(self, expected: Tensor, progress: float) -> None:
        """One step of λ, given E[cost], () each or (targets,)."""
        raised = (self.multiplier + self.rate * (expected - self.bound(progress))).clamp(min=0)
        self.multiplier.copy_(torch.where(expected > 1 - self.target, raised, 0.0))
