"""best.ckpt and last.ckpt: what is saved, when, and so that no crash destroys it."""

import math
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sparsereg.checkpoint import write_checkpoint
from sparsereg.errors import UserError
from sparsereg.files import write_atomically
from sparsereg.runs.start_checks import epochs_of


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning stages its files in the temp folder, often another disk, where a move can tear."""

    def save_checkpoint(self, checkpoint: dict, path: str, storage_options=None) -> None:
        make_folder(Path(path).parent)
        write_checkpoint(checkpoint, Path(path))


def make_folder(folder: Path) -> None:
    """Within a run's folder, which is not made anew if it has been moved away."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot save into {folder}: {error.strerror}") from error


class TrainingTime(pl.callbacks.Timer):
    """Seconds of training; those of a resumed run's earlier parts are in its checkpoint."""

    def load_state_dict(self, state_dict: dict) -> None:
        seconds = state_dict["time_elapsed"]["train"]
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{seconds} s of training")
        super().load_state_dict(state_dict)


NO_EPOCH = (False, -float("inf"))  # are the gates settled at the target, accuracy


class BestAndLast(pl.callbacks.Checkpoint):
    """Keeps `last.ckpt`, always of the newest epoch, and `best.ckpt`, of the highest `val_acc`.

    With a target sparsity any epoch that has it is better than one that is still on its way there.
    Lightning's ModelCheckpoint leaves its `last.ckpt` stale when the monitored value does not
    improve, and forgets the best score when a resumed run has a new folder. On a tie the newer
    epoch is the better one: gates have closed since.

    Args:
        evaluate: "best" or "last", the one that the results at the end of the run are of.
    """

    def __init__(self, evaluate: str = "best"):
        self.evaluate = evaluate
        self.validated = False
        self.best_score = NO_EPOCH
        self.folder = Path()
        self.epochs = 0  # of the checkpoint to go on from

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    @property
    def evaluated(self) -> Path:
        return self.last if self.evaluate == "last" else self.best

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.folder = Path(trainer.log_dir) / "checkpoints"

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module, checkpoint: dict) -> None:
        self.epochs = epochs_of(checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path and self.epochs >= trainer.max_epochs:  # only the rest is left to do
            best = Path(trainer.ckpt_path).with_name("best.ckpt")
            self.adopt(trainer, best if best.exists() else Path(trainer.ckpt_path), self.best)
            self.adopt(trainer, Path(trainer.ckpt_path), self.last)  # with its best beside it

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path and self.best_score > NO_EPOCH:
            earlier = Path(trainer.ckpt_path).with_name("best.ckpt")
            if trainer.strategy.broadcast(earlier.exists()):
                self.adopt(trainer, earlier, self.best)
            else:
                self.best_score = NO_EPOCH
        # so that a run stopped in its first epoch can resume
        trainer.save_checkpoint(self.last, weights_only=False)

    def adopt(self, trainer: pl.Trainer, earlier: Path, own: Path) -> None:
        """A resumed run starts with the checkpoints of the run it continues."""
        if trainer.is_global_zero:
            make_folder(own.parent)
            write_atomically(own, earlier.read_bytes())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        score = NO_EPOCH
        if self.validated:  # not every epoch need be
            score = (pl_module.settled, trainer.callback_metrics["val_acc"].item())
        self.validated = False
        if score >= self.best_score and score > NO_EPOCH:
            self.best_score = score
            trainer.save_checkpoint(self.best, weights_only=False)
            if trainer.is_global_zero:  # the same content, not serialized again
                write_atomically(self.last, self.best.read_bytes())
        else:
            trainer.save_checkpoint(self.last, weights_only=False)

    def state_dict(self) -> dict:
        settled, accuracy = self.best_score
        return {"best_score": accuracy, "best_settled": settled}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best_score = (state_dict.get("best_settled", False), state_dict["best_score"])
