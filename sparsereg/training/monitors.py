"""What a run logs and shows beside its losses."""

import csv
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from rich import get_console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers
from sparsereg.sparsity.size import dense_size, measure, open_channels, sparsities
from sparsereg.training.loggers import TensorBoard
from sparsereg.training.pictures import blocks_picture


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
        net, image_shape = pl_module.net, trainer.datamodule.image_shape
        if gate_layers(net):  # `count` adds what is left, after each epoch
            dense = dense_size(net, image_shape)
            self.size = {f"dense_{cost}": number for cost, number in dense.items()}
        else:
            self.size = measure(net, image_shape)
        self.first_epoch, self.history = trainer.current_epoch + 1, []
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard) and trainer.is_global_zero:
                logger.lay_out(list(gate_layers(pl_module.net)))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.log_every_n_steps = 1  # what the run ends with is logged, whatever the interval

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        net = pl_module.net
        gates = {name: gate.qz_loga.detach() for name, gate in gate_layers(net).items()}
        if gates:
            self.count(trainer, pl_module, deterministic_gate(torch.cat(list(gates.values()))) > 0)
        size = self.size
        pl_module.log("sparsity", size["sparsity"], prog_bar=True, sync_dist=True)
        counts = {"params": size["params"], "macs": size["macs"]}
        counts |= {f"actual_sparsity/{cost}": s for cost, s in sparsities(net, size).items()}
        self.history.append(open_channels(net))
        counts |= {f"open_channels/{name}": n for name, n in self.history[-1].items()}
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
        layers = dict(zip(gates, qz_loga.split([len(g) for g in gates.values()]), strict=True))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                for name, layer in layers.items():
                    logger.experiment.add_histogram(f"qz_loga/{name}", layer, step, bins=self.BINS)
                if self.is_drawn(trainer):
                    widths = {name: len(layer) for name, layer in layers.items()}
                    picture = blocks_picture(self.history, widths, self.first_epoch)
                    where = {"global_step": step, "dataformats": "HWC"}
                    logger.experiment.add_image("open channels", picture, **where)

    def is_drawn(self, trainer: pl.Trainer) -> bool:
        """Ten times a run, which TensorBoard keeps, the last epoch among them."""
        left = trainer.max_epochs - trainer.current_epoch - 1
        return left % max(1, trainer.max_epochs // 10) == 0

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
    """Prints one line of at most 80 characters for each epoch, for terminals and log files alike.

    With a target, λ and the sparsity of what it is for, in the place of `L_C0`.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        shown = {"val_loss": ("val_loss", ".3g"), "val_acc": ("val_acc", ".4f")}
        objective = pl_module.objective
        if objective is not None and objective.constraint is None:
            shown["L_C0"] = ("L_C0", ".3f")
        shown["sparsity"] = ("sparsity", ".3f")
        if objective is not None and objective.constraint is not None:
            if objective.cost != "params":  # of params it is "sparsity"
                shown[f"actual_sparsity/{objective.cost}"] = (objective.cost, ".3f")
            shown["lambda_l0"] = ("λ", ".3g")
        logged, last = trainer.callback_metrics, trainer.max_epochs
        parts = [f"epoch {trainer.current_epoch + 1}/{last}"]
        for key, (name, style) in shown.items():
            if key in logged:
                parts.append(f"{name} {logged[key]:{style}}")
        print(*parts, sep="  ", flush=True)


class ProgressBar(pl.callbacks.ProgressBar):
    """One line of a terminal: epoch, how much of the run is done, time left, loss and accuracy.

    At most five times a second: to read a number is to wait for the GPU, and a bar takes longer to
    draw than a step there. A log file has no bar.
    """

    def __init__(self):
        super().__init__()
        self.drawn = 0.0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left{task.fields[shown]}", table_column=Column(no_wrap=True)),
            expand=True,
            transient=True,
            refresh_per_second=5,
            disable=not get_console().is_terminal,
        )

    def disable(self) -> None:  # as Lightning does in all processes but the first
        self.progress.disable = True

    def show(self, title: str, total: float, done: int = 0) -> None:
        for task in self.progress.task_ids:
            self.progress.remove_task(task)
        self.task = self.progress.add_task(title, total=total, completed=done, shown="")
        self.progress.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.batches = trainer.num_training_batches
        total = trainer.max_epochs * self.batches
        self.show("training", total, trainer.current_epoch * self.batches)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        now = time.monotonic()
        if self.progress.disable or (now - self.drawn < 0.2 and not trainer.is_last_batch):
            return
        self.drawn = now
        epoch = trainer.current_epoch
        self.progress.update(
            self.task,
            completed=epoch * self.batches + batch_idx + 1,
            description=f"epoch {epoch + 1}/{trainer.max_epochs}",
            shown="  loss {:.3f}  acc {:.4f}".format(*so_far(pl_module)),
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module, exception: BaseException) -> None:
        self.progress.stop()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.show("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer, pl_module, *batch_and_more) -> None:
        self.progress.advance(self.task)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.stop()


def so_far(module: pl.LightningModule) -> tuple[float, float]:
    """Loss and accuracy of this epoch until now, in this process: `compute` would ask the others,
    which do not draw."""
    loss, acc = module.train_loss, module.train_acc
    return (loss.mean_value / loss.weight).item(), (acc.tp.sum() / (acc.tp + acc.fn).sum()).item()


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
