"""A training step without gates, with ours, and in the published formulation.

A step is forward, loss, backward, AdamW. Ours has all that training does for the gates: the
expected channels, parameters and multiply-adds, and the guard that keeps a channel open in every
block.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import BATCH, CLASSES, DEVICE, IMAGE, alternate, rows_of
from benchmarks.reference import Reference
from sparsereg.commands.memory import keep_buffers
from sparsereg.compact import compact
from sparsereg.model import kernels
from sparsereg.model.basic_l0_blocks import gate_layers, prob_nonzero
from sparsereg.model.googlenet import GoogleNet
from sparsereg.model.precision import has_bfloat16
from sparsereg.model.training_graph import training_graph
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import reopen
from sparsereg.training.module import compiled

LAMBDA = 0.5
UNGATED, WITH_TORCH = "no gates", "no gates, torch's kernels"
PER_SAMPLE, PER_BATCH = "gates per sample", "gates per batch"
REFERENCE = "reference formulation"
CUT, CUT_LAYERS = "half of the channels", "half of the channels, layer by layer"
Loss = Callable[[Tensor, Tensor], Tensor]


def random_batch(batch: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, *IMAGE, device=DEVICE), torch.arange(batch, device=DEVICE) % classes


def plain_loss(net: nn.Module, compile: bool = False) -> Loss:
    compute = compiled(net.forward) if compile else net.forward
    return lambda images, labels: F.cross_entropy(compute(images), labels)


def gated_loss(net: GoogleNet, cost: ExpectedCost, compile: bool = False) -> Loss:
    compute, cost_of = (compiled(m.forward) if compile else m.forward for m in (net, cost))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        qz_loga = net.qz_loga()
        ce = F.cross_entropy(compute(images, qz_loga), labels)
        return ce + LAMBDA * cost_of(prob_nonzero(qz_loga, net.temperature))["channels"]

    return loss


def reference_loss(net: Reference) -> Loss:
    return lambda images, labels: F.cross_entropy(net(images), labels) + LAMBDA * net.penalty()


def step_of(
    net: nn.Module, loss_of: Loss, precision: torch.dtype = torch.float32, after=lambda: None
) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
            loss = loss_of(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()

    return step


def ungated_step(precision=torch.float32, compile: bool = False, classes: int = CLASSES):
    net = GoogleNet(classes, without_using_gate=True)
    net = net.to(DEVICE, memory_format=torch.channels_last)
    return step_of(net, plain_loss(net, compile), precision)


def gated_step(precision=torch.float32, compile: bool = False, classes: int = CLASSES, **arguments):
    net = GoogleNet(classes, droprate_init=0.05, **arguments)
    cost = ExpectedCost(net, IMAGE).to(DEVICE)
    net = net.to(DEVICE, memory_format=torch.channels_last)
    guard = functools.partial(reopen, net, cost, 1)
    return step_of(net, gated_loss(net, cost, compile), precision, guard)


def reference_step(precision=torch.float32):
    net = Reference(GoogleNet(droprate_init=0.05)).to(DEVICE)
    return step_of(net, reference_loss(net), precision)


def cut_steps(precision: torch.dtype) -> dict[str, Callable[[Tensor, Tensor], None]]:
    """Of what is left when every other gate is closed: as the product trains it, and with an
    operation for each layer."""
    net = GoogleNet(droprate_init=0.05)
    for gate in gate_layers(net).values():
        gate.qz_loga.data[1::2] = -10
    small = compact(net).to(DEVICE, memory_format=torch.channels_last).train()
    ways = {CUT: training_graph(small).train(), CUT_LAYERS: small}
    return {name: step_of(small, plain_loss(way), precision) for name, way in ways.items()}


def without_kernels(step: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    return patch.object(kernels, "library", lambda: None)(step)


def steps(precision: torch.dtype) -> dict[str, Callable[[Tensor, Tensor], None]]:
    """The ways to train, by name; on a GPU also compiled."""
    ways = {
        UNGATED: ungated_step(precision),
        PER_SAMPLE: gated_step(precision),
        PER_BATCH: gated_step(precision, sampling="per_batch"),
        REFERENCE: reference_step(precision),
    }
    if DEVICE == "cpu" and precision == torch.bfloat16 and kernels.library():
        ways[WITH_TORCH] = without_kernels(ungated_step(precision))
        ways |= cut_steps(precision)
    if DEVICE == "cuda":
        ways[f"{UNGATED}, compiled"] = ungated_step(precision, compile=True)
        ways[f"{PER_SAMPLE}, compiled"] = gated_step(precision, compile=True)
    return ways


def bound(ways: dict[str, Callable], batch: int) -> dict[str, Callable[[], None]]:
    """The steps on one batch; the reference gets it in its own memory format."""
    images, labels = random_batch(batch)
    fast = images.contiguous(memory_format=torch.channels_last)

    def bind(name: str, step: Callable) -> Callable[[], None]:
        return lambda: step(images if name == REFERENCE else fast, labels)

    return {name: bind(name, step) for name, step in ways.items()}


def times(precision: torch.dtype, batch: int, rounds: int) -> dict[str, list[float]]:
    keep_buffers()  # this is a process of its own
    return alternate(bound(steps(precision), batch), rounds)


def times_of_processes(number: int, *arguments) -> dict[str, list[float]]:
    """Those of so many processes, one after the other: a ratio moves by some percent from one to
    the next, however often it is measured in one."""
    found: dict[str, list[float]] = {}
    for _ in range(number):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for name, own in pool.submit(times, *arguments).result().items():
                found.setdefault(name, []).extend(own)
    return found


def run(rounds: int = 3, batch: int = BATCH, processes: int = 6) -> list[dict]:
    """In bfloat16 on a CPU that has to emulate it a quarter of the batch."""
    tables = []
    for precision in (torch.float32, torch.bfloat16):
        if DEVICE == "cpu" and precision == torch.bfloat16 and not has_bfloat16():
            batch, processes = max(2, batch // 4), 1
        found = times_of_processes(processes, precision, batch, rounds)
        peers = {"× time of no gates": UNGATED, "× time of ours": PER_SAMPLE}
        name = str(precision).removeprefix("torch.")
        title = f"Training step, {DEVICE}, {name}, batch {batch}, {processes} times {rounds} rounds"
        tables.append({"title": title, "rows": rows_of(found, batch, peers)})
    return tables


def run_compiled(rounds: int = 5, batch: int = BATCH) -> list[dict]:
    """The product's step, eager and compiled; a minute of compilation on a CPU."""
    ways = {PER_SAMPLE: gated_step(), f"{PER_SAMPLE}, compiled": gated_step(compile=True)}
    found = alternate(bound(ways, batch), rounds)
    title = f"Compiled training step, {DEVICE}, float32, batch {batch}, {rounds} rounds"
    return [{"title": title, "rows": rows_of(found, batch, {"× time of eager": PER_SAMPLE})}]
