"""Several runs side by side on one device: images per second of all of them together."""

import os
import time

import torch
from torch import multiprocessing

from benchmarks.measure import DEVICE, synchronize
from benchmarks.steps import bound, gated_step
from sparsereg.commands.memory import keep_buffers


def train(rank: int, runs: int, steps: int, batch: int, ready, seconds) -> None:
    keep_buffers()
    torch.set_num_threads(max(1, os.cpu_count() // runs))
    step = bound({"ours": gated_step()}, batch)["ours"]
    step()
    ready.wait()  # all begin together
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    seconds[rank] = time.perf_counter() - start


def rate(runs: int, steps: int, batch: int) -> float:
    context = multiprocessing.get_context("spawn")
    ready, seconds = context.Barrier(runs), context.Array("d", runs)
    arguments = runs, steps, batch, ready, seconds
    multiprocessing.spawn(train, arguments, nprocs=runs)
    return runs * steps * batch / max(seconds)


def run(
    runs: tuple[int, ...] = (1, 2, 4, 8), images: int = 2048, batch: int = 128, rounds: int = 1
) -> list[dict]:
    """`images` of all runs together."""
    images *= 100 if DEVICE == "cuda" else 1
    steps = {n: max(1, images // n // batch) for n in runs}
    rates = {n: max(rate(n, steps[n], batch) for _ in range(rounds)) for n in runs}
    rows = [
        {"runs": n, "images/s of all": rates[n], "× one run": rates[n] / rates[runs[0]]}
        for n in runs
    ]
    return [{"title": f"Runs side by side, {DEVICE}, float32, batch {batch}", "rows": rows}]
