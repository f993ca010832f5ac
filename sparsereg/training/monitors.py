"""What a run logs and shows beside its losses."""

import csv
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers
from sparsereg.sparsity.size import measure, open_channels, sparsities


class GateMonitor(pl.Callback):
    """Logs, after each epoch, what the cut network would be, and histograms of ln α.

    The size is `ExpectedCost.count`, milliseconds where cutting and counting takes half a second
    (docs/performance.md): exact, but an upper bound where several gates share a channel.

    The histogram of all gates also goes to qz_loga.csv in the run's folder, which report.py reads
    much faster than event files: one row an epoch with its step and, under the lower edge of each
    bin, the number of gates in it.
    """

    EDGES = torch.arange(-10, 10.5, 0.5)  # of the bins of ln α; the outer two have no end
    BINS = 30  # as TensorBoard draws a histogram; its writer's own 1,500 take five times as long

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.size = measure(pl_module.net, trainer.datamodule.image_shape)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        net = pl_module.net
        gates = {name: gate.qz_loga.detach() for name, gate in gate_layers(net).items()}
        if gates:
            self.count(trainer, pl_module, deterministic_gate(torch.cat(list(gates.values()))) > 0)
        size = self.size
        pl_module.log("sparsity", size["sparsity"], prog_bar=True, sync_dist=True)
        counts = {"params": size["params"], "macs": size["macs"]}
        counts |= {f"actual_sparsity/{cost}": s for cost, s in sparsities(net, size).items()}
        counts |= {f"open_channels/{name}": n for name, n in open_channels(net).items()}
        pl_module.log_dict({name: float(n) for name, n in counts.items()}, sync_dist=True)
        if size["params"] == 0:
            rank_zero_warn(
                "every channel that some layer reads is closed: the network ignores its input. "
                "Lower lambda_l0, or keep a channel open in each block with min_open_channels=1."
            )
        folder = Path(trainer.log_dir)  # every process asks: the first one tells the others
        if not gates or not trainer.is_global_zero:
            return
        step, qz_loga = trainer.global_step, torch.cat(list(gates.values())).cpu()
        self.write_counts(folder, step, qz_loga)
        layers = qz_loga.split([len(gate) for gate in gates.values()])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, layer in zip(gates, layers, strict=True):
                    logger.experiment.add_histogram(f"qz_loga/{name}", layer, step, bins=self.BINS)

    def count(self, trainer: pl.Trainer, module: pl.LightningModule, is_open: torch.Tensor) -> None:
        """Keep the size that is left with these gates, (gates,)."""
        cost = module.expected_cost
        counted = cost.count(is_open)
        if cost.blocked(is_open):
            self.size = measure(module.net, trainer.datamodule.image_shape)
        else:
            self.size |= {"params": counted["params"], "macs": counted["macs"]}
            self.size["sparsity"] = 1 - self.size["params"] / self.size["dense_params"]
        self.size |= {"weights": counted["weights"], "dense_weights": cost.dense["weights"]}

    def write_counts(self, folder: Path, step: int, qz_loga: torch.Tensor) -> None:
        bins = torch.bucketize(qz_loga, self.EDGES)
        counts = bins.bincount(minlength=len(self.EDGES) + 1).tolist()
        with open(folder / "qz_loga.csv", "a", encoding="utf-8", newline="") as out:
            rows = csv.writer(out, lineterminator="\n")
            if out.tell() == 0:
                rows.writerow(["step", "-inf", *self.EDGES.tolist()])
            rows.writerow([step, *counts])


class EpochLine(pl.Callback):
    """Prints one line for each epoch, for terminals and log files alike."""

    KEYS = ("val_loss", "val_acc", "L_C0", "sparsity")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            keys = list(self.KEYS)
            objective = pl_module.objective
            if objective is not None and objective.constraint is not None:
                asked_for = f"actual_sparsity/{objective.cost}"  # of params it is "sparsity"
                keys += [*([asked_for] if objective.cost != "params" else []), "lambda_l0"]
            logged = trainer.callback_metrics
            shown = [f"{key} {logged[key]:.4f}" for key in [*keys, "samples/s"] if key in logged]
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print(epoch, *shown, sep="  ", flush=True)


class ProgressBar(pl.callbacks.RichProgressBar):
    """Lightning's, at most five times a second: to read a number is to wait for the GPU, and a bar
    takes longer to draw than a step there."""

    drawn = 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        now = time.monotonic()
        if now - self.drawn >= 0.2 or trainer.is_last_batch:
            self.drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Throughput(pl.Callback):
    """Logs training samples per second of each epoch, validation not counted."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.samples = 0
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self.samples += len(batch[1]) * trainer.world_size
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - self.start
            rate = self.samples / seconds
            pl_module.log("samples/s", rate, on_step=False, on_epoch=True, sync_dist=True)
