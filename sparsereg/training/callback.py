"""Gates for any LightningModule: the penalty joins its loss, and the gates end at the target."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import L0Gate, deterministic_gate
from sparsereg.sparsity.objective import GateObjective, L0Penalty
from sparsereg.sparsity.target import TargetSparsity
from sparsereg.training.module import log_gates


class L0Callback(pl.Callback):
    """Adds λ · E[cost] of the gates to what `training_step` returns, and ends at a sparsity.

    The module has a network from `insert_gates`, and gives its optimizer `param_groups`:

        self.net = sparsereg.insert_gates(net, images)                                 # __init__
        groups = sparsereg.param_groups(self, lr=1e-3, gate_lr=0.05)       # configure_optimizers
        pl.Trainer(callbacks=[sparsereg.L0Callback(target_sparsity=0.6, cost="macs")])

    Logs `L_C0`, `lambda_l0` and `expected_sparsity/…`, and after each epoch, as
    `actual_sparsity/COST`, what the network would have if it were cut now.

    Args:
        target_sparsity: in (0, 1), see `TargetSparsity`; None: `lambda_l0` is set by hand.
        lambda_l0: λ without a target, see `L0Penalty`.
        cost: "channels", "params", "macs" or "weights".
        image_shape: (C, H, W); None: that of the first (N, C, H, W) tensor of the first batch.
        settings: the others of `TargetSparsity` or `L0Penalty`; epochs are the trainer's.

    Raises:
        UserError: when training starts: no gates, gates without a parameter group of their own,
            several optimizers, or a target that is out of reach.
    """

    def __init__(
        self,
        target_sparsity: float | Mapping[str, float] | None = None,
        lambda_l0: float | Mapping[str, float] = 0.5,
        cost: str = "channels",
        image_shape: Sequence[int] | None = None,
        **settings: Any,
    ):
        self.target, self.lambda_l0 = target_sparsity, lambda_l0
        self.image_shape = image_shape
        self.settings = {"cost": cost, **settings}
        self.objective: GateObjective | None = None  # from the first batch on
        self.restored: dict | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise UserError(
                "L0Callback needs automatic optimization with one optimizer; in a loop of your own "
                "use sparsereg.TargetSparsity"
            )
        self.objective = None
        check_groups(trainer.optimizers[0], gated_network(pl_module))
        step = pl_module.training_step

        @functools.wraps(step)
        def step_with_penalty(*arguments: Any, **named: Any) -> Any:
            return self.with_penalty(pl_module, step(*arguments, **named))

        pl_module.training_step = step_with_penalty

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module, batch: Any, batch_idx) -> None:
        if self.objective is None:
            self.objective = self.new_objective(trainer, gated_network(pl_module), batch)
        self.objective.done = trainer.global_step
        self.objective.settle_in_time()

    def new_objective(self, trainer: pl.Trainer, net: nn.Module, batch: Any) -> GateObjective:
        shape = self.image_shape or image_shape_of(batch)
        steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs or -1
        length = {"steps": steps, "epochs": epochs if epochs > 0 else 1}
        if math.isinf(steps):
            raise UserError("L0Callback needs an end of the run: Trainer(max_epochs=…)")
        if self.target is None:
            return L0Penalty(net, shape, self.lambda_l0, **self.settings, **length)
        objective = TargetSparsity(net, shape, self.target, **self.settings)
        objective.plan(**length)
        if self.restored is not None:
            objective.load_state_dict(self.restored)
            self.restored = None
        else:
            objective.check_reach()
        return objective

    def with_penalty(self, pl_module: pl.LightningModule, result: Any) -> Any:
        """What a training step returns, with the penalty in its loss."""
        if result is None:  # a step that is left out
            return None
        penalty = self.objective.penalty()
        log_gates(pl_module, self.objective)
        if isinstance(result, Mapping):
            return {**result, "loss": result["loss"] + penalty}
        return result + penalty

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module, optimizer) -> None:
        self.objective.before_step()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, *batch: Any) -> None:
        self.objective.after_step()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = self.objective.sparsity(deterministic_gate(self.objective.qz_loga().detach()) > 0)
        for layer, sparsity in found.items():
            name = f"actual_sparsity/{layer or self.objective.cost}"
            pl_module.log(name, sparsity, prog_bar=True, sync_dist=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        vars(pl_module).pop("training_step", None)  # its own again

    def on_exception(self, trainer: pl.Trainer, pl_module, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict:
        return {} if self.objective is None else self.objective.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.restored = state_dict or None


def gated_network(module: pl.LightningModule) -> nn.Module:
    """The network of a LightningModule that has all its gates.

    Raises:
        UserError: there are no gates, or in several networks.
    """
    net, gates = module, count_gates(module)
    if gates == 0:
        raise UserError(
            f"{type(module).__name__} has no gates: in its __init__, "
            "self.net = sparsereg.insert_gates(net, images)"
        )
    while isinstance(net, pl.LightningModule):
        children = [child for child in net.children() if count_gates(child) == gates]
        if not children:
            raise UserError(f"the gates of {type(module).__name__} must be in one network")
        net = children[0]
    return net


def count_gates(net: nn.Module) -> int:
    return sum(isinstance(module, L0Gate) for module in net.modules())


def check_groups(optimizer: Optimizer, net: nn.Module) -> None:
    """Raise UserError unless all gates are in a parameter group of their own, without decay."""
    gates = {id(module.qz_loga) for module in net.modules() if isinstance(module, L0Gate)}
    groups = [({id(p) for p in group["params"]}, group) for group in optimizer.param_groups]
    own = [(ids, group) for ids, group in groups if ids & gates]
    is_good = all(ids <= gates and not group.get("weight_decay") for ids, group in own)
    if not is_good or set().union(*(ids for ids, _ in own)) != gates:
        raise UserError(
            "the gates need a parameter group of their own, without weight decay: in "
            "configure_optimizers give the optimizer sparsereg.param_groups(self, lr=…, gate_lr=…)"
        )


def image_shape_of(batch: Any) -> tuple[int, int, int]:
    parts = batch.values() if isinstance(batch, Mapping) else batch
    parts = [parts] if isinstance(parts, Tensor) else list(parts)
    shapes = [part.shape[1:] for part in parts if isinstance(part, Tensor) and part.dim() == 4]
    if not shapes:
        raise UserError("no images (N, C, H, W) in the batch: L0Callback(image_shape=(C, H, W), …)")
    return tuple(shapes[0])
