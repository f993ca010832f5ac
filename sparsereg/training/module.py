"""The step: cross-entropy + λ · expected cost of the gates, and the accuracies."""

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.model.layers import channels_last, protect_narrow_strides
from sparsereg.model.training_graph import training_graph
from sparsereg.sparsity.objective import GateObjective
from sparsereg.training.loss import ClassificationLoss
from sparsereg.training.schedules import param_groups

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), labels (N,)


class L0Module(pl.LightningModule):
    """Trains a classifier, with the expected cost of its gates as a penalty or as a constraint.

    Args:
        net: a network without gates, or one that takes `qz_loga`, as `GoogleNet`.
        num_classes: classes of the accuracy.
        optimizer: called with the parameter groups.
        scheduler: called with the optimizer and the number of steps of the run, see `schedules`.
        loss: called with images, logits and labels; None: cross-entropy.
        objective: of the gates, if `net` has any and is to be trained.
        flip_tta: evaluate the mean of the logits of each image and its mirror image.
        compile: compute training steps with `torch.compile`; evaluation stays as it is.
        record: plain data that lets a checkpoint be used without its command line.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: Callable,
        scheduler: Callable,
        loss: ClassificationLoss | None = None,
        objective: GateObjective | None = None,
        flip_tta: bool = False,
        compile: bool = False,
        record: dict | None = None,
    ):
        super().__init__()
        self.net = protect_narrow_strides(channels_last(net))  # halves the time of a CPU step
        self.gated = bool(gate_layers(net))
        # functions, not modules: the names in a checkpoint are the same, compiled or not
        forward = training_graph(self.net).forward
        self.train_net = compiled(forward) if compile else forward
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss = loss or ClassificationLoss()
        self.objective = objective
        if objective is not None:  # modules: their buffers move along, and λ is in checkpoints
            self.expected_cost = objective.expected_cost
            self.constraint = objective.constraint
            self.layer_cost = objective.layer_cost
            if compile:
                objective.costs = compiled(objective.costs)
        self.flip_tta = flip_tta
        self.record = record
        # none of them checks its arguments, for which a GPU would have to be waited for
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.train_ce = MeanMetric(nan_strategy="disable")
        settings = {"average": "micro", "validate_args": False}
        self.train_acc = MulticlassAccuracy(num_classes, **settings)
        self.val_acc = MulticlassAccuracy(num_classes, **settings)
        self.test_acc = MulticlassAccuracy(num_classes, **settings)
        # constants, and BatchNorm statistics that on_validation_start shares: not to be sent to all
        # processes at every step
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        qz_loga = self.net.qz_loga() if self.gated else None
        logits = self.train_net(images, **({"qz_loga": qz_loga} if self.gated else {}))
        ce = self.loss(images, logits, labels)
        loss = ce + self.penalty(qz_loga) if self.gated else ce
        self.train_acc.update(logits, labels)
        for mean, value in ((self.train_loss, loss), (self.train_ce, ce)):
            mean.update(value.detach(), len(labels))
        return loss

    def on_train_epoch_end(self) -> None:  # not at every step: Lightning takes milliseconds for it
        self.log_dict(
            {name: getattr(self, name) for name in ("train_loss", "train_ce", "train_acc")}
        )

    def penalty(self, qz_loga: Tensor) -> Tensor:
        """λ · E[cost], summed over layers that have their own, (); logged."""
        penalty = self.objective.penalty(qz_loga)
        log_gates(self, self.objective)
        return penalty

    def prob_open(self, qz_loga: Tensor) -> Tensor:
        """P(z ≠ 0) of each gate, (gates,)."""
        return self.objective.prob_open(qz_loga)

    def weight_of_cost(self) -> Tensor:
        """λ of this step."""
        return self.objective.weight_of_cost()

    @property
    def settled(self) -> bool:
        """Have the gates been fixed at the target?"""
        return self.objective is not None and self.objective.settled

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.gated:
            self.objective.done = self.trainer.global_step
            self.objective.settle_in_time()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses fused optimizers in bfloat16 too, where no gradients are scaled
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.gated:
            self.objective.before_step()

    def on_train_batch_end(self, outputs: dict, batch: Batch, batch_idx: int) -> None:
        if self.gated:
            self.objective.after_step()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluation_step(batch, "val", self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluation_step(batch, "test", self.test_acc)

    def evaluation_step(self, batch: Batch, split: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        # as test.py computes it, whatever the precision of the training steps
        with torch.autocast(images.device.type, enabled=False):
            logits = self.net(images)
            if self.flip_tta:
                logits = (logits + self.net(images.flip(-1))) / 2
        accuracy.update(logits, labels)
        loss = F.cross_entropy(logits, labels)
        self.log(f"{split}_loss", loss, batch_size=len(labels), sync_dist=True)
        self.log(f"{split}_acc", accuracy, batch_size=len(labels))

    def on_validation_start(self) -> None:
        # Processes that train together keep their own BatchNorm statistics since the last step:
        # evaluate, and save, those of the first.
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def configure_optimizers(self) -> dict:
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        try:
            optimizer = self.optimizer(param_groups(self.net))
        except ValueError as error:  # torch's checks, as of Nesterov without momentum
            raise UserError(f"optimizer: {error}") from error
        if self.gated:
            self.objective.plan(self.trainer.max_epochs, self.total_steps)
            gate_group = optimizer.param_groups[-1]
            gate_group["lr"] = self.objective.rate(gate_group["lr"])
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer, self.total_steps)}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["sparsereg"] = self.record

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        planned = checkpoint["lr_schedulers"][0].get("total_steps")
        steps = self.trainer.estimated_stepping_batches
        if planned is not None and planned != steps:
            raise UserError(
                f"the checkpoint's one-cycle schedule was planned for {planned} steps and this run "
                f"has {steps}: resume with the same trainer.max_epochs and data"
            )


def log_gates(module: pl.LightningModule, objective: GateObjective) -> None:
    """L_C0, λ and the expected sparsities, in the steps that loggers write, and for the line of an
    epoch in its last: Lightning takes milliseconds for them, as a small network for the step."""
    trainer = module.trainer
    is_logged = (trainer.global_step + 1) % trainer.log_every_n_steps == 0
    if not is_logged and not trainer.is_last_batch:
        return
    weights = {"lambda_l0": objective.weight}
    if objective.layer_cost is not None:
        names = [f"lambda_l0/{pattern}" for pattern in objective.layer_cost.patterns]
        weights = dict(zip(names, objective.weight, strict=True))
    sparsity = {f"expected_sparsity/{name}": 1 - e for name, e in objective.expected.items()}
    module.log("L_C0", objective.expected["channels"], on_step=True, prog_bar=True)
    module.log_dict(weights | sparsity, on_step=True)


def compiled(function: Callable) -> Callable:
    """`torch.compile`, with CUDA graphs on a GPU: batches have one size. The noise is drawn as in
    eager mode, so that both give the same losses."""
    options = {"triton.cudagraphs": True, "fallback_random": True}
    return torch.compile(function, dynamic=False, options=options)
