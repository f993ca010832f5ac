"""Checkpoints: written so that no crash destroys one, read so that no wrong one slips through."""

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from sparsereg.errors import UserError
from sparsereg.files import check_checkpoint_file
from sparsereg.networks import rebuild
from sparsereg.surgery.plain_graph import build


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """After a crash at any moment, `path` holds the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")  # beside it: a rename is atomic within one disk
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the file saved before is intact" if path.exists() else ""
        raise UserError(f"cannot save {path}: {error.strerror}{kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(content: dict, path: Path) -> None:
    """torch.save, atomically; to a full disk torch alone would raise a cryptic RuntimeError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


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

    Args:
        evaluate: "best" or "last", the one that the results at the end of the run are of.
    """

    def __init__(self, evaluate: str = "best"):
        self.evaluate = evaluate
        self.validated = False
        self.best_score = NO_EPOCH
        self.folder = Path()

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


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint of this project: plain types and tensors, on the CPU.

    Raises:
        UserError: missing, damaged or foreign file, or one with objects that are not plain data.
    """
    check_checkpoint_file(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"ckpt_path={path} cannot be loaded safely (weights_only=True): {reason}"
        ) from None
    if not is_ours(checkpoint):
        raise UserError(f"ckpt_path={path} was not written by sparsereg's train.py")
    return checkpoint


def is_ours(checkpoint: object) -> bool:
    """Has it all that a network and its data are rebuilt from?"""
    parts = {
        "state_dict": set(),
        "sparsereg": {"overrides", "config", "network", "data"},
    }
    has_parts = isinstance(checkpoint, Mapping) and all(
        isinstance(checkpoint.get(part), Mapping) and keys <= checkpoint[part].keys()
        for part, keys in parts.items()
    )
    if not has_parts or not isinstance(checkpoint["sparsereg"]["network"], Mapping):
        return False
    loops = checkpoint.get("loops")
    return is_compact(checkpoint) or (isinstance(loops, Mapping) and "fit_loop" in loops)


def network_state(checkpoint: dict) -> dict:
    """The network's part of a checkpoint's state dict."""
    state = checkpoint["state_dict"].items()
    return {key[4:]: tensor for key, tensor in state if key.startswith("net.")}


def load_weights(net: nn.Module, checkpoint: dict, new_gates: bool = False) -> None:
    """Load a checkpoint's weights, and its gates, into `net`, strictly.

    Args:
        net: the network.
        checkpoint: from `read_checkpoint`.
        new_gates: leave the gates of `net` as they are, whether the checkpoint has gates or not.

    Raises:
        UserError: a key is missing or unexpected, or a shape differs.
    """
    state, own = network_state(checkpoint), net.state_dict()
    own_gates = {key: tensor for key, tensor in own.items() if key.endswith("qz_loga")}
    if new_gates and own_gates:
        state = {k: t for k, t in state.items() if not k.endswith("qz_loga")} | own_gates
    check_fits(state, own)
    net.load_state_dict(state)


def is_gated(state: Mapping) -> bool:
    return any(key.endswith("qz_loga") for key in state)


def check_fits(state: Mapping, own: Mapping) -> None:
    """Raise UserError that names what differs between a loaded and the network's own state."""
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if any("reduction_gates" in key for key in missing + unexpected) and is_gated(own):
        raise UserError(
            f"the checkpoint's reductions have {'no ' if missing else ''}gates: use "
            f"gate_reductions={'false' if missing else 'true'}"
        )
    if unexpected and all(key.endswith("qz_loga") for key in unexpected):
        raise UserError(
            "the checkpoint has gates and this network has none "
            f"({len(unexpected)} qz_loga unexpected): use without_using_gate=false"
        )
    for what, keys in (("lacks", missing), ("has in addition", unexpected)):
        if keys:
            raise UserError(f"the checkpoint does not fit: it {what} {shorten(keys)}")
    different = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if state[key].shape != own[key].shape
    ]
    if different:
        raise UserError(
            f"the checkpoint has other widths or classes than this network: {shorten(different)}"
        )


def check_classes(checkpoint: dict, classes: list[str], key: str = "the checkpoint") -> None:
    """Raise UserError unless the data have the classes that the checkpoint was trained on."""
    trained = checkpoint["sparsereg"]["data"]["classes"]
    if trained != list(classes):
        raise UserError(
            f"the data have the classes {shorten(classes)}, but {key} was trained on "
            f"{shorten(trained)}: choose its data with data=… and data.root=…"
        )


def shorten(items: list[str]) -> str:
    return ", ".join(items[:2]) + (f" and {len(items) - 2} more" if len(items) > 2 else "")


def is_compact(checkpoint: dict) -> bool:
    """Does it hold a network that was cut, not one that the configuration describes?"""
    return "operations" in checkpoint["sparsereg"]["network"]


def new_network(checkpoint: dict) -> nn.Module:
    """The network of a checkpoint, with new weights.

    That of a compact one has in `meta["dense"]` the size of the dense network it was cut from.

    Raises:
        UserError: the checkpoint describes no network.
    """
    description = checkpoint["sparsereg"]["network"]
    try:
        if not is_compact(checkpoint):
            return rebuild(description)
        net = build(description)
        net.meta["dense"] = description["dense"]
        return net
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoint describes no network: {error}") from error


def load(path: str | Path) -> nn.Module:
    """The network of a checkpoint or compact file, in eval mode on the CPU.

    `net(images)` gives logits. Images are (N, C, H, W), scaled to [0, 1] and normalised with the
    mean and standard deviation that `read_checkpoint(path)["sparsereg"]["data"]` names, beside the
    classes.

    Raises:
        UserError: see `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    net = new_network(checkpoint)
    load_weights(net, checkpoint)
    return net.eval()
