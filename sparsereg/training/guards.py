"""What keeps a run on its way: its seed, finite weights, signals, gates that move."""

import math
import signal
import sys
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch.distributed import default_pg_timeout, distributed_c10d
from torch.nn.utils import get_total_norm

from sparsereg.commands.command_line import Stopped, stop_on_signals
from sparsereg.commands.overrides import command_to_go_on, same_command, trains_several
from sparsereg.errors import UserError, printable


class EpochSeed(pl.Callback):
    """Makes every epoch's noise a function of (seed, epoch, process).

    A resumed run repeats it exactly, no generator states need saving, and the processes of a
    distributed run draw different gates and augmentations.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        entropy = [self.seed, trainer.current_epoch, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class FiniteWeights(pl.Callback):
    """Ends a run before its network is saved, if weights, buffers or the validation loss are no
    longer finite: logits can be NaN with weights that are finite."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (broken := self.find_broken(trainer, pl_module)) is None:
            return
        raise UserError(
            f"{broken} no longer finite after epoch {trainer.current_epoch + 1}; lower "
            "optimizer.lr, gate_lr or lambda_l0. The last finite checkpoint is "
            f"{trainer.checkpoint_callback.last}"
        )

    def find_broken(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str | None:
        state = pl_module.net.state_dict()
        tensors = {name: t for name, t in state.items() if t.is_floating_point()}
        loss = trainer.callback_metrics.get("val_loss", torch.zeros(())).detach()
        norm = get_total_norm(tensors.values(), torch.inf)
        if (norm + loss.to(norm.device)).isfinite():  # one number, read once
            return None
        broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if not broken:
            return "the validation loss is"
        return f"the weights ({len(broken)} tensors, first {broken[0]}) are"


class PatientDDP(DDPStrategy):
    """Waits for the processes of a run to start, but not for ever: a node may never answer.

    Once all are there, they have torch's own half an hour for each other.
    """

    def __init__(self, seconds: float):
        super().__init__(timeout=timedelta(seconds=seconds))

    def setup_distributed(self) -> None:
        super().setup_distributed()
        # torch has no public name to change the limit of a group that exists
        distributed_c10d._set_pg_timeout(default_pg_timeout)


def strategy_of(cfg: DictConfig) -> str | PatientDDP:
    trainer = cfg.trainer
    if trainer.strategy == "ddp" or trainer.num_nodes > 1:
        return PatientDDP(cfg.wait_for_processes)
    return trainer.strategy


def check_length(cfg: DictConfig, data: pl.LightningDataModule, scheduler: Callable) -> None:
    """Raise UserError for a run that is too short, before it has a folder.

    Args:
        cfg: its settings.
        data: set up.
        scheduler: of `schedules`, with its settings.
    """
    trainer = cfg.trainer
    devices = trainer.devices * trainer.num_nodes if isinstance(trainer.devices, int) else 1
    used = {}
    for split in ("train", "val", "test"):
        size = data.batch_size if split == "train" else data.eval_batch_size
        images = len(getattr(data.splits, split).labels) // max(devices, 1)
        batches = images // size if split == "train" else math.ceil(images / size)
        limit = trainer[f"limit_{split}_batches"]
        used[split] = batches if limit is None else min(limit, batches)
        if isinstance(limit, float):
            used[split] = int(limit * batches)
        if used[split] == 0:
            raise UserError(
                f"trainer.limit_{split}_batches={limit} of {batches} batches is none: "
                f"use {math.ceil(1e4 / batches) / 1e4:g} or more"
            )
    epochs = min(trainer.max_epochs, cfg.finetune_epochs or trainer.max_epochs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler(optimizer, math.ceil(used["train"] / trainer.accumulate_grad_batches) * epochs)


class StopOnSignals(pl.Callback):
    """Ctrl-C and SIGTERM end the run with exit code 130 or 143, and say how to go on; so do a disk
    or a folder that is gone.

    Lightning alone would end with 1 or, after SIGTERM, with 0, as if the run were complete.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_on_signals()  # in place of the handlers that Lightning has just installed

    def on_exception(self, trainer: pl.Trainer, pl_module, exception: BaseException) -> None:
        if isinstance(exception, OSError) or isinstance(exception.__cause__, OSError):
            self.name_the_last_good(trainer)
        if not isinstance(exception, Stopped):
            return
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)
        files = trainer.checkpoint_callback
        if trainer.is_global_zero and files.last.exists():
            if trains_several():
                command = same_command()
            elif trainer.state.fn == TrainerFn.FITTING:
                command = command_to_go_on("train.py", files.last, "resume_training=true")
            else:
                command = command_to_go_on("test.py", files.best)
            print(printable(f"stopped; to go on: {command}"), flush=True)

    def name_the_last_good(self, trainer: pl.Trainer) -> None:
        """The folder, the disk or the terminal is gone: say what is left."""
        last = trainer.checkpoint_callback.last
        if trainer.is_global_zero:
            moved = "" if last.exists() else ", wherever that lies now"
            print(
                printable(f"the last good checkpoint is {last}{moved}"), file=sys.stderr, flush=True
            )


class StillGates(pl.Callback):
    """Warns once if no gate is on its way, after a tenth of the run and once their rate has peaked.

    With a target, whose λ is still being found then, after its warm-up. Runs of fewer than 100
    steps are left alone.
    """

    MOVED = 0.01  # of P(z ≠ 0)

    def __init__(self):
        self.start: torch.Tensor | None = None
        self.asked = False
        self.step, self.rate = 0, 0.0  # of the last step of the optimizer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.start is None and pl_module.gated:
            self.start = self.prob_open(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        steps, step = pl_module.total_steps, trainer.global_step
        if not pl_module.gated or self.asked or steps < 100 or step == self.step:
            return
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        is_rising = rate > self.rate
        self.step, self.rate = step, rate
        constraint = pl_module.constraint
        when = int(max(0.0 if constraint is None else constraint.warmup, 0.1) * steps)
        if step < when or is_rising:
            return
        self.asked = True
        moved = (self.prob_open(pl_module) - self.start).abs().max().item()
        lambda_l0 = pl_module.weight_of_cost().max().item()
        if moved < self.MOVED and lambda_l0 > 0:
            rank_zero_warn(
                f"the gates are not moving: after {step} of {steps} steps no P(z != 0) has left "
                f"its start by {self.MOVED} (the farthest by {moved:.4f}); raise gate_lr "
                f"({rate:.2g} now) or lambda_l0 ({lambda_l0:.3g} now)"
            )

    @staticmethod
    def prob_open(pl_module: pl.LightningModule) -> torch.Tensor:
        return pl_module.prob_open(pl_module.net.qz_loga().detach()).cpu()

    def state_dict(self) -> dict:
        return {"start": self.start, "asked": self.asked}

    def load_state_dict(self, state_dict: dict) -> None:
        self.start = state_dict["start"]
        self.asked = state_dict.get("asked", False)
