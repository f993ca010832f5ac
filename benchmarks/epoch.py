"""Training as `train.py` does it, with Lightning, logging, validation and checkpoints, beside the
published way: PIL transforms image by image and the reference formulation in a plain loop.

Times are those of the epochs after the first, so without the start of a run."""

import tempfile
import time
import warnings

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.profiler import ProfilerActivity, profile

from benchmarks.data import per_image
from benchmarks.measure import (
    BATCH,
    CLASSES,
    DEVICE,
    IMAGE,
    alternate,
    quartiles,
    rows_of,
    synchronize,
    take_turns,
)
from benchmarks.steps import reference_step
from sparsereg.commands.command_line import quieten
from sparsereg.commands.overrides import CONFIG
from sparsereg.data.batch_indices import BatchIndices
from sparsereg.data.pipeline import ImageData, LabelledImages, Splits
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.objective import L0Penalty
from sparsereg.sparsity.size import measure
from sparsereg.training.module import L0Module
from sparsereg.training.saving import AtomicCheckpointIO

OURS, UNGATED, REFERENCE = "ours", "ours, no gates", "reference formulation, PIL"
QUIET = ("callbacks.epoch_line=null", "callbacks.stop_on_signals=null")


class Stopwatch(pl.Callback):
    """`seconds` that the epochs after the first took; `profiler` records them, if there is one."""

    def __init__(self, profiler: profile | None = None):
        self.profiler = profiler

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            synchronize()
            if self.profiler is not None:
                self.profiler.start()
            self.start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        synchronize()
        self.seconds = time.perf_counter() - self.start
        if self.profiler is not None:
            self.profiler.stop()


class RandomImages(ImageData):
    """Noise, in the size of CIFAR-10's images."""

    def __init__(self, train: int, evaluated: int, **arguments):
        super().__init__(**arguments)
        self.sizes = train, evaluated, evaluated

    def read_splits(self) -> Splits:
        parts = [random_images(size) for size in self.sizes]
        return Splits(
            *parts, classes=[str(c) for c in range(CLASSES)], mean=(0.5,) * 3, std=(1,) * 3
        )


def random_images(number: int) -> LabelledImages:
    images = torch.randint(0, 256, (number, *IMAGE), dtype=torch.uint8)
    return LabelledImages(images, torch.arange(number) % CLASSES)


def train(
    epochs: int, batches: int, batch: int, *overrides: str, profiler: profile | None = None
) -> float:
    """Seconds of an epoch of so many batches, and of a ninth as many images to validate on."""
    watch = Stopwatch(profiler)
    with tempfile.TemporaryDirectory() as folder:
        device = f"trainer={'gpu' if DEVICE == 'cuda' else 'cpu'}"
        settings = [device, f"trainer.max_epochs={epochs}", f"output_dir={folder}", *QUIET]
        with initialize_config_dir(str(CONFIG), version_base="1.3"):
            cfg = compose("train", overrides=[*settings, *overrides])
        net = instantiate(cfg.model)
        gated = not cfg.without_using_gate
        module = L0Module(
            net,
            CLASSES,
            instantiate(cfg.optimizer, _convert_="all"),
            instantiate(cfg.scheduler, _convert_="all"),
            objective=L0Penalty(net, IMAGE) if gated else None,
            compile=cfg.compile,
        )
        callbacks = [instantiate(c, _convert_="all") for c in cfg.callbacks.values() if c]
        trainer = instantiate(cfg.trainer, _convert_="all")(
            callbacks=[*callbacks, watch],
            precision="bf16-mixed" if DEVICE == "cuda" else "32-true",
            logger=[instantiate(logger) for logger in cfg.logger.values()],
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
        )
        images = batches * batch
        trainer.fit(module, RandomImages(images, max(1, images // 9), batch_size=batch))
    return watch.seconds / (epochs - 1)


def train_reference(epochs: int, batches: int, batch: int) -> float:
    """Seconds of an epoch, without validation."""
    step = reference_step()
    images, labels = random_images(batches * batch)
    load = per_image(images)
    for epoch in range(epochs):
        if epoch == 1:
            synchronize()
            start = time.perf_counter()
        for index in BatchIndices(len(images), batch, seed=epoch):
            step(load(index).to(DEVICE), labels[index].to(DEVICE))
    synchronize()
    return (time.perf_counter() - start) / (epochs - 1)


def idle_share(epochs: int, *size: int) -> float:
    """Share of the time of `train` in which the GPU does nothing."""
    profiler = profile(activities=[ProfilerActivity.CUDA])
    seconds = train(epochs, *size, profiler=profiler) * (epochs - 1)
    on_gpu = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return 1 - sum(event.time_range.elapsed_us() for event in on_gpu) / 1e6 / seconds


def sizes(rounds: int) -> dict:
    """How GateMonitor finds the size of the cut network after each epoch, beside cutting it."""
    net = GoogleNet()
    for gate in net.gates.values():
        gate.qz_loga.data.normal_(0, 3)
    cost = ExpectedCost(net, IMAGE)
    ways = {
        "predicted": lambda: cost.count(deterministic_gate(net.qz_loga().detach()) > 0),
        "cut and counted": lambda: measure(net, IMAGE),
    }
    times = {
        name: quartiles([1000 * t for t in own]) for name, own in alternate(ways, rounds).items()
    }
    rows = [{"way": name, "ms": ms} for name, ms in times.items()]
    return {"title": f"Size of the cut network, after each epoch, {rounds} rounds", "rows": rows}


def run(rounds: int = 3, batches: int = 4, batch: int = BATCH) -> list[dict]:
    epochs = 2
    if DEVICE == "cuda":  # as many batches as CIFAR-10 has
        batches, epochs = max(batches, 351), 4
    size = epochs, batches, batch
    ways = {
        OURS: lambda: train(*size),
        UNGATED: lambda: train(*size, "without_using_gate=true"),
        REFERENCE: lambda: train_reference(*size),
    }
    if DEVICE == "cuda":
        ways[f"{OURS}, compiled"] = lambda: train(*size, "compile=true")
    with warnings.catch_warnings():
        quieten()
        rows = rows_of(take_turns(ways, rounds), batches * batch, {"× time of ours": OURS})
        title = f"End to end, an epoch of {batches} batches of {batch}, {DEVICE}, {rounds} rounds"
        tables = [{"title": title, "rows": rows}, sizes(3 * rounds)]
        if DEVICE == "cuda":
            idle = {"way": OURS, "idle share of the GPU": idle_share(*size)}
            tables.append({"title": "The GPU during training", "rows": [idle]})
    return tables
