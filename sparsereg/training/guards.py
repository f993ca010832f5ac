"""What keeps a run on its way: its seed, finite weights, signals, gates that move."""

import signal
import sys
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
from sparsereg.commands.overrides import command_to_go_on
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
            if trainer.state.fn == TrainerFn.FITTING:
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
    """Warns once, after a tenth of the run, if no gate is on its way.

    With a target, whose λ is still being found then, after its warm-up. Runs of fewer than 100
    steps are left alone.
    """

    MOVED = 0.01  # of P(z ≠ 0)

    def __init__(self):
        self.start: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.start is None and pl_module.gated:
            self.start = self.prob_open(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if not pl_module.gated:
            return
        constraint, steps = pl_module.constraint, pl_module.total_steps
        when = int(max(0.0 if constraint is None else constraint.warmup, 0.1) * steps)
        if steps < 100 or trainer.global_step != when:
            return
        moved = (self.prob_open(pl_module) - self.start).abs().max().item()
        lambda_l0 = pl_module.weight_of_cost().max().item()
        if moved < self.MOVED and lambda_l0 > 0:
            rate = trainer.optimizers[0].param_groups[-1]["lr"]
            rank_zero_warn(
                f"the gates are not moving: after {when} of {steps} steps no P(z != 0) has left "
                f"its start by {self.MOVED} (the farthest by {moved:.4f}). Unless their rate, "
                f"{rate:.2g} now, is yet to rise, raise gate_lr or lambda_l0 ({lambda_l0:.3g} now)."
            )

    @staticmethod
    def prob_open(pl_module: pl.LightningModule) -> torch.Tensor:
        return pl_module.prob_open(pl_module.net.qz_loga().detach()).cpu()

    def state_dict(self) -> dict:
        return {"start": self.start}

    def load_state_dict(self, state_dict: dict) -> None:
        self.start = state_dict["start"]
