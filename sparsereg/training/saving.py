"""best.ckpt and last.ckpt: what is saved, when, and so that no crash destroys it."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sparsereg.checkpoint import save
from sparsereg.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning stages its files in the temp folder, often another disk, where a move can tear."""

    def save_checkpoint(self, checkpoint: dict, path: str, storage_options=None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save(checkpoint, Path(path))


NO_EPOCH = (False, -float("inf"))  # are the gates settled at the target, accuracy


class BestAndLast(pl.callbacks.Checkpoint):
    """Keeps `last.ckpt`, always of the newest epoch, and `best.ckpt`, of the highest `val_acc`.

    With a target sparsity any epoch that has it is better than one that is still on its way there.
    Lightning's ModelCheckpoint leaves its `last.ckpt` stale when the monitored value does not
    improve, and forgets the best score when a resumed run has a new folder. On a tie the newer
    epoch is the better one: gates have closed since.
    """

    def __init__(self):
        self.validated = False
        self.best_score = NO_EPOCH
        self.folder = Path()

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.folder = Path(trainer.log_dir) / "checkpoints"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path and self.best_score > NO_EPOCH:
            self.adopt_best(trainer, Path(trainer.ckpt_path).with_name("best.ckpt"))
        # so that a run stopped in its first epoch can resume
        trainer.save_checkpoint(self.last, weights_only=False)

    def adopt_best(self, trainer: pl.Trainer, earlier: Path) -> None:
        """A resumed run starts with the best checkpoint of the run it continues, if it is there."""
        if not trainer.strategy.broadcast(earlier.exists()):
            self.best_score = NO_EPOCH
        elif trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.best, earlier.read_bytes())

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
