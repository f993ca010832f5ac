"""The training objective: cross-entropy + lambda_l0 · L_C0."""

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers, prob_nonzero

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), labels (N,)


class L0Module(pl.LightningModule):
    """Trains a classifier, with the expected L0 norm of its gates as a penalty.

    Args:
        net: a network without gates, or one that takes `qz_loga`, as `GoogleNet`.
        num_classes: classes of the accuracy.
        optimizer: called with the parameter groups.
        scheduler: called with the optimizer and the number of steps of the run, see `schedules`.
        lambda_l0: weight λ of `L_C0`.
        gate_lr: learning rate of the gates; None: that of the weights.
        record: plain data that lets a checkpoint be used without its command line.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: Callable,
        scheduler: Callable,
        lambda_l0: float = 0.5,
        gate_lr: float | None = None,
        record: dict | None = None,
    ):
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # halves the time of a CPU step
        self.gated = bool(gate_layers(net))
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.lambda_l0 = lambda_l0
        self.gate_lr = gate_lr
        self.record = record
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        qz_loga = self.net.qz_loga() if self.gated else None
        logits = self.net(images, qz_loga) if self.gated else self.net(images)
        ce = F.cross_entropy(logits, labels)
        loss = ce
        if self.gated:
            l_c0 = prob_nonzero(qz_loga, self.net.temperature).mean()
            loss = ce + self.lambda_l0 * l_c0
            self.log("L_C0", l_c0, on_step=True, prog_bar=True)
        self.train_acc.update(logits, labels)
        per_epoch = {"train_loss": loss, "train_ce": ce, "train_acc": self.train_acc}
        self.log_dict(
            per_epoch, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True
        )
        return loss

    def on_train_epoch_start(self) -> None:
        if self.gated:
            self.log("lambda_l0", float(self.lambda_l0), sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluation_step(batch, "val", self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluation_step(batch, "test", self.test_acc)

    def evaluation_step(self, batch: Batch, split: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self.net(images)
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
        gates = [p for name, p in self.net.named_parameters() if name.endswith("qz_loga")]
        weights = [p for name, p in self.net.named_parameters() if not name.endswith("qz_loga")]
        groups = [{"params": weights, "name": "weights"}]
        if gates:  # decay would pull ln α to 0, a gate half open
            groups.append({"params": gates, "name": "gates", "weight_decay": 0.0})
            if self.gate_lr is not None:
                groups[1]["lr"] = self.gate_lr
        try:
            optimizer = self.optimizer(groups)
        except ValueError as error:  # torch's checks, as of Nesterov without momentum
            raise UserError(f"optimizer: {error}") from error
        total_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer, total_steps)}

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
