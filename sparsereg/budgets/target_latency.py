"""Milliseconds that the cut network is to take on this machine."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from sparsereg.budgets.clock import Clock
from sparsereg.budgets.latency import ExpectedLatency, with_gates
from sparsereg.choices import ROUNDINGS
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.sparsity.selection import choose_open
from sparsereg.sparsity.target import TargetSparsity

TOLERANCE = 0.05  # share by which the time may miss what was asked
NEAR = 0.02  # the same for predictions
TRIES = 2  # the second with a corrected prediction


class TargetLatency(TargetSparsity):
    """`TargetSparsity` for a time. When the gates are fixed, the network is cut and measured; if
    it misses what was asked by more than `TOLERANCE`, the prediction is corrected, once.

    A processor computes whole vectors of channels, so gates close by ones, eights or sixteens of a
    layer, whichever keeps most in that time.

    Args:
        net: the network that is trained, with `L0Gate` layers.
        image_shape: (C, H, W) of an image.
        clock: that measures.
        milliseconds: of a call.
        speedup: instead, over the dense network.
        settings: see `TargetSparsity`.

    Raises:
        UserError: the dense network takes no longer; or see `TargetSparsity`.
    """

    def __init__(
        self,
        net: nn.Module,
        image_shape: Sequence[int],
        clock: Clock,
        milliseconds: float | None = None,
        speedup: float | None = None,
        **settings,
    ):
        cost = ExpectedLatency(net, image_shape, clock)
        dense = cost.dense["latency"]
        self.wish = f"target_latency={milliseconds}" if speedup is None else f"{speedup=}"
        self.wish = self.wish.replace("speedup=", "target_speedup=")
        self.milliseconds = dense / speedup if milliseconds is None else milliseconds
        if self.milliseconds >= dense:
            raise UserError(f"{self.wish}: the dense network takes {dense:.3g} ms already")
        target = 1 - self.milliseconds / dense
        super().__init__(net, image_shape, target, "latency", expected_cost=cost, **settings)

    def choose(self, qz_loga: Tensor) -> Tensor:
        target, dense, tried = self.target, self.expected_cost.dense["latency"], []
        for _ in range(TRIES):
            is_open = self.in_time(qz_loga, target)
            predicted = self.time_of(is_open)
            measured = self.measure(is_open)
            miss = abs(measured / self.milliseconds - 1)
            print(
                f"{self.wish}: {self.milliseconds:.3g} ms asked, {predicted:.3g} predicted, "
                f"{measured:.3g} measured",
                flush=True,
            )
            tried.append((miss, is_open))
            if miss <= TOLERANCE:
                break
            corrected = self.milliseconds * predicted / measured
            target = min(max(1 - corrected / dense, 0.0), 1.0)
        return min(tried, key=lambda found: found[0])[1]

    def in_time(self, qz_loga: Tensor, target: float) -> Tensor:
        """The gates that stay open for a predicted time: by ones or by more, whichever keeps
        most of those that come near enough to it."""
        widths = [len(gate.qz_loga) for gate in self.gates]
        kept = [
            choose_open(
                torch.cat([together(layer, n) for layer in qz_loga.cpu().split(widths)]),
                *(self.expected_cost, self.cost, target, self.min_open_channels),
                tries=0,  # one more or less takes as long, in a vector of them
            )
            for n in ROUNDINGS
        ]
        kept = [self.fill_vectors(is_open, qz_loga.cpu()) for is_open in kept]
        likely = self.prob_open(qz_loga.cpu())
        misses = [abs(self.expected_cost.sparsity(own)[self.cost] - target) for own in kept]
        near = max(min(misses), NEAR * (1 - target))
        fitting = [own for own, miss in zip(kept, misses, strict=True) if miss <= near]
        return max(fitting, key=lambda is_open: likely[is_open].sum().item())

    def fill_vectors(self, is_open: Tensor, qz_loga: Tensor) -> Tensor:
        """The gates (gates,), and of each layer those that open more in the same time: up to whole
        vectors of channels."""
        widths = [len(gate.qz_loga) for gate in self.gates]
        for layer, start in zip(widths, accumulate(widths, initial=0), strict=False):
            own = slice(start, start + layer)
            now = int(is_open[own].sum())
            for step in sorted(ROUNDINGS, reverse=True)[:-1]:
                wanted = min(-(-now // step) * step, layer)
                if wanted > now:
                    more = is_open.clone()
                    best = torch.where(is_open[own], torch.inf, qz_loga[own]).topk(wanted).indices
                    more[own][best] = True
                    if self.time_of(more) <= self.time_of(is_open):
                        is_open = more
                        break
        return is_open

    def time_of(self, is_open: Tensor) -> float:
        return self.expected_cost.count(is_open)["latency"]

    def measure(self, is_open: Tensor) -> float:
        """Milliseconds of the network cut to these gates, (gates,)."""
        net = with_gates(self.net, is_open).cpu()
        return self.expected_cost.time({"cut": net})["cut"]

    def report(self) -> dict:
        """What was asked, predicted, and is measured now, dense and cut network in turns."""
        is_open = deterministic_gate(self.qz_loga().detach().cpu()) > 0
        cost = self.expected_cost
        gates = {"dense": torch.ones_like(is_open), "cut": is_open}
        times = cost.time({name: with_gates(self.net, own).cpu() for name, own in gates.items()})
        return {
            "cost": "latency",
            "target_latency": self.milliseconds,
            "predicted_latency": cost.count(is_open)["latency"],
            "latency": times["cut"],
            "dense_latency": times["dense"],
            "batch": cost.clock.batch,
            "backend": cost.clock.backend,
            "machine": cost.clock.machine,
        }

    def asked(self, layer: str, target: float) -> str:
        return self.wish

    def out_of_reach(self, layer: str, target: float, highest: float) -> str:
        least = (1 - highest) * self.expected_cost.dense["latency"]
        return (
            f"{self.wish} is out of reach: with the gates of this network and "
            f"min_open_channels={self.min_open_channels} the fastest takes about {least:.3g} ms, "
            f"the dense one {self.expected_cost.dense['latency']:.3g}"
        )


def together(qz_loga: Tensor, number: int) -> Tensor:
    """ln α of a layer such that its gates close by so many: the mean of each `number`, in their
    order, and hardly less for the later ones."""
    order = qz_loga.argsort(descending=True)
    groups = torch.arange(len(order)) // number
    means = torch.bincount(groups, weights=qz_loga[order].float()) / torch.bincount(groups)
    values = means[groups].float() - 1e-4 * torch.arange(len(order))
    return torch.empty_like(values).scatter(0, order, values)
