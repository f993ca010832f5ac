"""How long networks take for a batch of images, measured side by side."""

import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn


def compare_latency(
    nets: dict[str, nn.Module], images: Tensor, rounds: int, seconds: float = 0.1
) -> dict[str, list[float]]:
    """Milliseconds that each network takes for the batch `images`, in each round.

    The networks take turns, so that a busy machine slows all of them: compare within a round, and
    quote medians of ratios (`speedup`).

    Args:
        nets: networks in eval mode, on the device of the images.
        images: (N, C, H, W).
        seconds: the slowest network is called for about so long in each round.
    """
    times: dict[str, list[float]] = {name: [] for name in nets}
    with torch.inference_mode():
        for net in nets.values():
            net(images)  # the first call prepares kernels
        slowest = max(seconds_per_call(net, images, 1) for net in nets.values())
        calls = max(1, round(seconds / slowest))
        for _ in range(rounds):
            for name, net in nets.items():
                times[name].append(1000 * seconds_per_call(net, images, calls))
    return times


def seconds_per_call(net: nn.Module, images: Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        net(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def speedup(times: list[float], reference: list[float]) -> float:
    """How many times faster than the reference; the median over the rounds."""
    return median(ref / own for own, ref in zip(times, reference, strict=True))


def machine() -> str:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{names[0] if names else platform.processor()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}"
    )
