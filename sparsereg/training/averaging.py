"""Averages of the weights over the steps of training, which often generalise better."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sparsereg.model.basic_l0_blocks import gate_layers


class AverageWeights(WeightAveraging):
    """Validates, tests and saves an exponential moving average of weights and BatchNorm statistics.

    Lightning's callback does the work: it swaps the average in for validation and into the
    checkpoints, which keep the trained weights beside it, so that a resumed run goes on exactly.
    Here the average also forgets its start ((1 + steps) / (10 + steps) is below `decay` at first),
    and gates are left as they are: an average of open and closed gates is neither.

    Args:
        decay: of the average, per step, in (0, 1).
    """

    def __init__(self, decay: float = 0.999):
        super().__init__(multi_avg_fn=self.blend)
        self.decay = decay
        self.steps = 0

    def blend(self, averages: list[Tensor], weights: list[Tensor], _) -> None:
        if not averages[0].is_floating_point():  # of one type: the numbers of channels, counts
            torch._foreach_copy_(averages, weights)
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(averages, weights, None)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, *batch) -> None:
        self.steps = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, *batch)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # later, what is evaluated has been loaded
            self.take_gates(pl_module)
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module, checkpoint: dict) -> None:
        self.take_gates(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    @torch.no_grad()
    def take_gates(self, pl_module: pl.LightningModule) -> None:
        # Lightning has no public name for the average that its callback keeps
        if self._average_model is None:  # outside training
            return
        averaged = gate_layers(self._average_model.module.net)
        for name, gate in gate_layers(pl_module.net).items():
            averaged[name].qz_loga.copy_(gate.qz_loga)
