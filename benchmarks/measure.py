"""Alternating measurements, and the tables made of them."""

import functools
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

BATCH, IMAGE, CLASSES = 128, (3, 32, 32), 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def take_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way returns, in each round.

    The ways take turns, so that a machine that is busy for a while slows all of them, and the order
    is reversed from round to round.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            found[name].append(ways[name]())
    return found


def alternate(
    ways: dict[str, Callable[[], object]], rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds per call of each way, in each round; each is called once before."""

    def seconds(call: Callable[[], object]) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        return (time.perf_counter() - start) / calls

    for call in ways.values():
        call()
    timed = {name: functools.partial(seconds, call) for name, call in ways.items()}
    return take_turns(timed, rounds)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(q) for q in np.percentile(values, [25, 50, 75])]


def ratios(times: list[float], others: list[float]) -> list[float]:
    """Quartiles of times / others, round by round."""
    return quartiles([a / b for a, b in zip(times, others, strict=True)])


def rows_of(times: dict[str, list[float]], images: int, peers: dict[str, str]) -> list[dict]:
    """A row for each way: milliseconds, images/s and, for each column of `peers`, how its time
    compares to the way that is named there."""
    return [
        {
            "way": name,
            "ms": quartiles([1000 * t for t in own]),
            "images/s": images / median(own),
            **{column: ratios(own, times[peer]) for column, peer in peers.items()},
        }
        for name, own in times.items()
    ]
