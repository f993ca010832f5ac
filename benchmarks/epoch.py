"""Training as `train.py` does it, with Lightning, logging and validation, beside the published way:
PIL transforms image by image and the reference formulation in a plain loop."""

import tempfile
import warnings

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.profiler import ProfilerActivity, profile

from benchmarks.data import per_image
from benchmarks.measure import BATCH, CLASSES, DEVICE, IMAGE, alternate, quartiles, rows_of
from benchmarks.steps import reference_step
from sparsereg.command_line import CONFIG, quieten
from sparsereg.cost import ExpectedCost
from sparsereg.data.batch_indices import BatchIndices
from sparsereg.data.pipeline import ImageData, LabelledImages, Splits
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.model.googlenet import GoogleNet
from sparsereg.module import L0Module
from sparsereg.size import measure

OURS, UNGATED, REFERENCE = "ours", "ours, no gates", "reference formulation, PIL"
WATCHING = ("gate_monitor", "still_gates", "throughput", "learning_rate")  # callbacks


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


def train(epochs: int, batches: int, batch: int, folder: str, *overrides: str) -> None:
    """So many epochs of so many batches, and a ninth as many images to validate on, as in a run."""
    trainer = f"trainer={'gpu' if DEVICE == 'cuda' else 'cpu'}"
    settings = [trainer, f"trainer.max_epochs={epochs}", f"output_dir={folder}", *overrides]
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose("train", overrides=settings)
    net = instantiate(cfg.model)
    module = L0Module(
        net,
        CLASSES,
        instantiate(cfg.optimizer, _convert_="all"),
        instantiate(cfg.scheduler, _convert_="all"),
        expected_cost=None if cfg.without_using_gate else ExpectedCost(net, IMAGE),
        compile=cfg.compile,
    )
    trainer = instantiate(cfg.trainer, _convert_="all")(
        callbacks=[instantiate(cfg.callbacks[name]) for name in WATCHING],
        logger=[instantiate(logger) for logger in cfg.logger.values()],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    images = batches * batch
    trainer.fit(module, RandomImages(images, max(1, images // 9), batch_size=batch))


def train_reference(epochs: int, batches: int, batch: int) -> None:
    step = reference_step()
    images, labels = random_images(batches * batch)
    load = per_image(images)
    for epoch in range(epochs):
        for index in BatchIndices(len(images), batch, seed=epoch):
            step(load(index).to(DEVICE), labels[index].to(DEVICE))


def busy_share(*arguments) -> float:
    """Share of the time of `train` in which the GPU works."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        train(*arguments)
    events = profiler.events()
    on_gpu = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    wall = max(e.time_range.end for e in on_gpu) - min(e.time_range.start for e in on_gpu)
    return sum(e.time_range.elapsed_us() for e in on_gpu) / wall


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
    epochs = 1
    if DEVICE == "cuda":  # as many batches as CIFAR-10 has
        batches, epochs = max(batches, 351), 2
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        quieten()
        size = epochs, batches, batch
        ways = {
            OURS: lambda: train(*size, folder),
            UNGATED: lambda: train(*size, folder, "without_using_gate=true"),
            REFERENCE: lambda: train_reference(*size),
        }
        if DEVICE == "cuda":
            ways[f"{OURS}, compiled"] = lambda: train(*size, folder, "compile=true")
        rows = rows_of(alternate(ways, rounds), epochs * batches * batch, {"× time of ours": OURS})
        title = f"End to end, {epochs} epochs of {batches} batches of {batch}, {DEVICE}"
        tables = [{"title": f"{title}, {rounds} rounds", "rows": rows}, sizes(3 * rounds)]
        if DEVICE == "cuda":
            idle = {"way": OURS, "idle share of the GPU": 1 - busy_share(*size, folder)}
            tables.append({"title": "The GPU during training", "rows": [idle]})
    return tables
