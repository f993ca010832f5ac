"""The training objective: cross-entropy + lambda_l0 · expected cost."""

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers, prob_nonzero
from sparsereg.sparsity.constraint import SparsityConstraint
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import choose_open, polarise, reopen
from sparsereg.training.loss import ClassificationLoss

# With a target, unless gate_lr is given: how far Adam can move ln α in the run, and at most in a
# step. Its first steps are whole ones, whatever the gradient, so larger ones would close by chance
GATE_TRAVEL, GATE_STEP = 100.0, 0.2
Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), labels (N,)


class L0Module(pl.LightningModule):
    """Trains a classifier, with the expected cost of its gates as a penalty or as a constraint.

    Args:
        net: a network without gates, or one that takes `qz_loga`, as `GoogleNet`.
        num_classes: classes of the accuracy.
        optimizer: called with the parameter groups.
        scheduler: called with the optimizer and the number of steps of the run, see `schedules`.
        loss: called with images, logits and labels; None: cross-entropy.
        lambda_l0: weight λ of the expected cost, where there is no constraint.
        lambda_warmup: epochs over which λ rises from 0.
        gate_lr: learning rate of the gates; None: that of the weights or, with a constraint, the
            larger of it and `GATE_TRAVEL` / steps of the run, at most `GATE_STEP`.
        expected_cost: of `net`, if it has gates.
        cost: which of the expected costs is weighted, or constrained.
        constraint: moves λ instead of `lambda_l0`.
        min_open_channels: so many gates stay open in every bottleneck of `expected_cost`.
        flip_tta: evaluate the mean of the logits of each image and its mirror image.
        compile: compute training steps with `torch.compile`; evaluation stays as it is.
        record: plain data that lets a checkpoint be used without its command line.

    Raises:
        UserError: a bottleneck is narrower than `min_open_channels`.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: Callable,
        scheduler: Callable,
        loss: ClassificationLoss | None = None,
        lambda_l0: float = 0.5,
        lambda_warmup: float = 0,
        gate_lr: float | None = None,
        expected_cost: ExpectedCost | None = None,
        cost: str = "channels",
        constraint: SparsityConstraint | None = None,
        min_open_channels: int = 1,
        flip_tta: bool = False,
        compile: bool = False,
        record: dict | None = None,
    ):
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # halves the time of a CPU step
        self.gated = bool(gate_layers(net))
        # functions, not modules: the names in a checkpoint are the same, compiled or not
        self.train_net = compiled(self.net.forward) if compile else self.net.forward
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss = loss or ClassificationLoss()
        self.lambda_l0 = lambda_l0
        self.lambda_warmup = lambda_warmup
        self.gate_lr = gate_lr
        self.expected_cost = expected_cost
        if expected_cost is not None:
            cost_of = expected_cost.forward
            self.train_cost = compiled(cost_of) if compile else cost_of
        self.cost = cost
        self.constraint = constraint
        self.min_open_channels = min_open_channels
        if expected_cost is not None and min_open_channels > expected_cost.narrowest:
            raise UserError(
                f"min_open_channels={min_open_channels} must be at most {expected_cost.narrowest}, "
                "the gates of the narrowest place"
            )
        self.flip_tta = flip_tta
        self.record = record
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")
        # constants, and BatchNorm statistics that on_validation_start shares: not to be sent to all
        # processes at every step
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        qz_loga = self.net.qz_loga() if self.gated else None
        logits = self.train_net(images, *([qz_loga] if self.gated else []))
        ce = self.loss(images, logits, labels)
        loss = ce
        if self.gated:
            expected = self.train_cost(self.prob_open(qz_loga))
            lambda_l0 = self.weight_of_cost()
            loss = ce + lambda_l0 * expected[self.cost]
            self.log("L_C0", expected["channels"], on_step=True, prog_bar=True)
            sparsity = {f"expected_sparsity/{name}": 1 - e for name, e in expected.items()}
            self.log_dict({"lambda_l0": lambda_l0, **sparsity}, on_step=True)
            self.expected = expected[self.cost].detach()
        self.train_acc.update(logits, labels)
        per_epoch = {"train_loss": loss, "train_ce": ce, "train_acc": self.train_acc}
        self.log_dict(
            per_epoch, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True
        )
        return loss

    def prob_open(self, qz_loga: Tensor) -> Tensor:
        """P(z ≠ 0) of each gate, (gates,)."""
        return prob_nonzero(qz_loga, self.net.temperature)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.trainer.global_step / self.total_steps

    def weight_of_cost(self) -> Tensor:
        """λ of this step."""
        if self.constraint is not None:
            return self.constraint.multiplier.clone()  # it moves before it is logged
        epochs = self.progress * self.trainer.max_epochs
        risen = min(1.0, epochs / self.lambda_warmup) if self.lambda_warmup else 1.0
        return torch.tensor(self.lambda_l0 * risen)

    @property
    def settled(self) -> bool:
        """Have the gates been fixed at the target?"""
        return self.constraint is not None and self.constraint.settled

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.constraint is None or self.settled or self.progress < self.constraint.settle_at:
            return
        qz_loga, target = self.net.qz_loga().detach(), self.constraint.target
        settings = self.expected_cost, self.cost, target, self.min_open_channels
        polarise(self.net, choose_open(qz_loga, *settings))
        self.constraint.settled = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.settled:
            for gate in gate_layers(self.net).values():
                gate.qz_loga.grad = None  # so no optimizer moves them, whatever its momentum
        elif self.constraint is not None:
            self.constraint.ascend(self.expected, self.progress)

    def on_train_batch_end(self, outputs: dict, batch: Batch, batch_idx: int) -> None:
        if self.gated and self.min_open_channels:
            reopen(self.net, self.expected_cost.bottlenecks, self.min_open_channels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluation_step(batch, "val", self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluation_step(batch, "test", self.test_acc)

    def evaluation_step(self, batch: Batch, split: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
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
        if self.constraint is not None:
            self.constraint.plan(self.trainer.max_epochs, self.total_steps)
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
        if self.constraint is not None and self.gate_lr is None:  # a short run has no time to lose
            gate_group = optimizer.param_groups[-1]
            gate_group["lr"] = max(gate_group["lr"], min(GATE_TRAVEL / self.total_steps, GATE_STEP))
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


def compiled(function: Callable) -> Callable:
    """`torch.compile`, with CUDA graphs on a GPU: batches have one size. The noise is drawn as in
    eager mode, so that both give the same losses."""
    options = {"triton.cudagraphs": True, "fallback_random": True}
    return torch.compile(function, dynamic=False, options=options)
