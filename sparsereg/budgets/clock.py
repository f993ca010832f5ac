"""Milliseconds on this machine: of single layers over a grid of widths, and of whole networks.

Layers take turns, so that a busy machine slows all of them, and medians are kept. What is measured
is written to a file that names the device and the backend, and read from it the next time.
"""

import contextlib
import functools
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsereg.budgets.onnx_layer import onnx_runner
from sparsereg.compact import fold
from sparsereg.errors import UserError
from sparsereg.export.latency import machine
from sparsereg.files import read_text, write_atomically

ROUNDS = 7  # of measuring a layer
NETWORK_ROUNDS = 15
SECONDS, NETWORK_SECONDS = 0.002, 0.03  # for which each is called at least, in each round
COPIES = 5  # of a fast layer in one ONNX graph: a call of onnxruntime takes as long as they do
FAST = 0.5  # milliseconds
QUIET = 0.8  # share of the time in which this thread had a processor


class Shape(NamedTuple):
    """What decides how long a layer takes, beside its widths. A linear layer has no kernel."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1  # 0: depthwise, as many as there are channels
    size: tuple[int, ...] = ()  # height and width of its input

    @classmethod
    def of(cls, layer: nn.Module, size: tuple[int, ...]) -> "Shape":
        if isinstance(layer, nn.Linear):
            return cls(())
        depthwise = layer.groups == layer.in_channels > 1
        pads = tuple(layer.padding) if not isinstance(layer.padding, str) else (layer.padding,)
        places = layer.kernel_size, layer.stride, pads, layer.dilation
        return cls(*map(tuple, places), 0 if depthwise else layer.groups, tuple(size))

    def layer(self, c_in: int, c_out: int) -> nn.Module:
        if not self.kernel:
            return nn.Linear(c_in, c_out)
        padding = self.padding[0] if isinstance(self.padding[0], str) else self.padding
        groups = self.groups or c_out
        places = self.stride, padding, self.dilation
        return nn.Conv2d(c_in if self.groups else c_out, c_out, self.kernel, *places, groups)

    def images(self, batch: int, c_in: int, c_out: int) -> Tensor:
        return torch.randn(batch, c_in if self.groups else c_out, *self.size)


Point = tuple[Shape, int, int]  # a layer, its input and its output channels


class Clock:
    """Measures with a backend, on some threads of the CPU.

    Args:
        batch: images in a call.
        backend: onnxruntime or torch.
        threads: that a network may use.
        cache_dir: the folder of the files with measured times.
    """

    def __init__(self, batch: int, backend: str, threads: int, cache_dir: str | Path):
        self.batch, self.backend, self.threads = batch, backend, threads
        with self.on_threads():
            self.machine = machine()
        known = f"{self.machine}, {backend} {version_of(backend)}, batch {batch}"
        self.file = Path(cache_dir) / f"{re.sub(r'[^a-zA-Z0-9.]+', '_', known)}.json"

    @contextlib.contextmanager
    def on_threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def read(self) -> dict[str, float]:
        """The times that were measured before; none if the file has anything else in it."""
        try:
            known = json.loads(read_text(self.file))
        except (OSError, ValueError, RecursionError):
            return {}
        is_sound = isinstance(known, dict) and all(map(is_time, known.values()))
        return known if is_sound else {}

    def layers(self, points: set[Point]) -> dict[Point, float]:
        """Milliseconds of each layer, with the ReLU after it."""
        known = self.read()
        missing = [point for point in sorted(points) if name_of(point) not in known]
        if missing:
            make_folder(self.file.parent)  # first: measuring takes minutes
            print(f"measuring {len(missing)} layers with {self.backend} on {self.machine}")
            groups: dict[Shape, list[Point]] = {}
            for point in missing:
                groups.setdefault(point[0], []).append(point)
            with self.on_threads(), torch.inference_mode(), undisturbed(self.file):
                for group in groups.values():
                    times = zip(map(name_of, group), self.measure(group), strict=True)
                    known |= dict(times)
            write_atomically(self.file, json.dumps(known, indent=0).encode())
        return {point: known[name_of(point)] for point in points}

    def measure(self, points: list[Point]) -> list[float]:
        """The median of each, in turns."""
        single = [self.runner(point, 1) for point in points]
        slow = [1000 * seconds(run) > FAST for run in single]
        many = [
            None if is_slow or self.backend == "torch" else self.runner(point, COPIES)
            for point, is_slow in zip(points, slow, strict=True)
        ]
        times: list[list[float]] = [[] for _ in points]
        for _ in range(ROUNDS):
            for own, one, several in zip(times, single, many, strict=True):
                alone = seconds(one)
                if several is not None:  # without the call
                    alone = max(0.0, seconds(several) - alone) / (COPIES - 1)
                own.append(1000 * alone)
        return list(map(median, times))

    def runner(self, point: Point, copies: int) -> Callable[[], object]:
        shape, *widths = point
        layer = shape.layer(*widths).eval().to(memory_format=torch.channels_last)
        images = shape.images(self.batch, *widths)
        if self.backend == "torch":
            images = (
                images.contiguous(memory_format=torch.channels_last) if shape.kernel else images
            )
            return lambda: torch.relu(layer(images))
        return onnx_runner(layer, images, copies, self.threads)

    def networks(self, nets: Mapping[str, nn.Module], image_shape: tuple) -> dict[str, float]:
        """Milliseconds of networks without gates, folded; the medians, in turns."""
        with self.on_threads(), tempfile.TemporaryDirectory() as folder:
            runs = {name: self.network(net, image_shape, folder) for name, net in nets.items()}
            times: dict[str, list[float]] = {name: [] for name in runs}
            images = torch.randn(self.batch, *image_shape)
            with torch.inference_mode(), undisturbed():
                for _ in range(1 + NETWORK_ROUNDS):
                    for name, run in runs.items():
                        call = functools.partial(run, images)
                        times[name].append(1000 * seconds(call, NETWORK_SECONDS))
        return {name: median(own[1:]) for name, own in times.items()}  # the first prepares kernels

    def network(self, net: nn.Module, image_shape: tuple, folder: str) -> Callable:
        folded = fold(net)
        if self.backend == "torch":
            return folded
        from sparsereg.export.formats import write_onnx

        images = torch.randn(2, *image_shape)
        batch = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(folded, (images,), dynamic_shapes=batch)
        return write_onnx(program, Path(folder, "network.onnx"), {})


@contextlib.contextmanager
def undisturbed(file: Path | None = None) -> Iterator[None]:
    """Says so if other programs had the processor for long, and in which file such times stay."""
    began, own = time.perf_counter(), time.thread_time()
    yield
    share = (time.thread_time() - own) / (time.perf_counter() - began)
    if share < QUIET:
        what = f"while this was measured other programs had {1 - share:.0%} of the processor"
        again = f". Delete {file} and start again when it is quiet" if file else ""
        print(f"{what}: the times are too long{again}", flush=True)


def seconds(run: Callable[[], object], window: float = SECONDS) -> float:
    """Of a call: the median of those within a window, as another process may interrupt any."""
    times, start = [], time.perf_counter()
    end, now = start + window, start
    while now < end:
        run()
        before, now = now, time.perf_counter()
        times.append(now - before)
    return median(times)


def is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"latency.cache_dir={folder} cannot be made: {error.strerror}") from error


def name_of(point: Point) -> str:
    shape, *widths = point
    return json.dumps([*shape, *widths])


@functools.cache
def version_of(backend: str) -> str:
    from importlib.metadata import version

    return version(backend)
