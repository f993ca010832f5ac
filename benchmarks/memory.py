"""Memory of a training step."""

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.measure import DEVICE
from benchmarks.steps import bound


def peak_memory(make: Callable, batch: int) -> float:
    """MiB that a first step needs beyond what was there before it: activations, gradients, the
    state of the optimizer.

    On a CPU it is measured in a process of its own, because one that has freed memory keeps it.
    """
    if DEVICE == "cuda":
        return first_step(make, batch)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(first_step, make, batch).result()


def first_step(make: Callable, batch: int) -> float:
    [step] = bound({"": make()}, batch).values()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak()
    step()
    return (peak() - before) / 2**20


def peak() -> int:
    """Bytes: most in use on the GPU since the statistics were reset, or ever by this process.

    From /proc, because getrusage counts the peak of the process that started this one too.
    """
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
