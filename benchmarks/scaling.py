"""How a training step grows with gates, batch and classes, and the memory it needs."""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import BATCH, CLASSES, DEVICE, alternate, quartiles, ratios, rows_of
from benchmarks.memory import peak_memory
from benchmarks.steps import bound, gated_step, step_of, ungated_step
from sparsereg.model.basic_l0_blocks import L0Gate, prob_nonzero

GATES = (832, 10_000, 100_000)
STEPS = {"ours": gated_step, "no gates": ungated_step}


def one_layer(gates: int, gated: bool) -> tuple[nn.Module, L0Gate | None]:
    """A convolution to so many channels with all that follows it, on 4x4 images."""
    gate = L0Gate(gates) if gated else None
    layers = [nn.Conv2d(3, gates, 1), nn.BatchNorm2d(gates), nn.ReLU(), *([gate] if gated else [])]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(gates, CLASSES)]
    return nn.Sequential(*layers, *head).to(DEVICE), gate


def layer_step(gates: int, gated: bool, batch: int = 16):
    net, gate = one_layer(gates, gated)
    images = torch.randn(batch, 3, 4, 4, device=DEVICE)
    labels = torch.arange(batch, device=DEVICE) % CLASSES

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ce = F.cross_entropy(net(images), labels)
        return ce + prob_nonzero(gate.qz_loga).mean() if gated else ce

    step = step_of(net, loss)
    return lambda: step(images, labels)


def by_gates(rounds: int, numbers: tuple[int, ...]) -> dict:
    ways = {(n, gated): layer_step(n, gated) for n in numbers for gated in (True, False)}
    times = alternate(ways, rounds)
    rows = [
        {
            "gates": n,
            "ms, gated": quartiles([1000 * t for t in times[n, True]]),
            "ms, no gates": quartiles([1000 * t for t in times[n, False]]),
            "ratio": ratios(times[n, True], times[n, False]),
        }
        for n in numbers
    ]
    return {"title": f"One layer of so many gates, {DEVICE}, batch 16, 4x4 images", "rows": rows}


def by_batch(rounds: int, batches: tuple[int, ...]) -> dict:
    rows = []
    for batch in batches:
        times = alternate(bound({name: make() for name, make in STEPS.items()}, batch), rounds)
        [ours, _] = rows_of(times, batch, {"× time of no gates": "no gates"})
        memory = {}
        if DEVICE == "cuda" or sys.platform == "linux":
            memory = {f"peak MiB, {name}": peak_memory(make, batch) for name, make in STEPS.items()}
        rows.append({"batch": batch, **{k: v for k, v in ours.items() if k != "way"}, **memory})
    return {"title": f"Gated training step by batch, {DEVICE}, float32", "rows": rows}


def by_classes(rounds: int, classes: tuple[int, ...], batch: int) -> dict:
    ways = bound({f"{n} classes": gated_step(classes=n) for n in classes}, batch)
    first = next(iter(ways))
    rows = rows_of(alternate(ways, rounds), batch, {f"× time of {first}": first})
    return {"title": f"Gated training step by classes, {DEVICE}, batch {batch}", "rows": rows}


def run(
    rounds: int = 5,
    gates: tuple[int, ...] = GATES,
    batches: tuple[int, ...] = (32, BATCH),
    classes: tuple[int, ...] = (10, 100, 1000),
) -> list[dict]:
    by_number = by_gates(rounds, gates)
    return [by_number, by_batch(rounds, batches), by_classes(rounds, classes, batches[0])]
