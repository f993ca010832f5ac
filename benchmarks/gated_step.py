"""A training step with gates beside one without, alternating in one process.

python -m benchmarks.gated_step [NETWORK] [--batch 32]
"""

import argparse
import time
from statistics import median, quantiles

import torch
from torch import nn
from torch.nn import functional as F

from sparsereg.export.latency import machine
from sparsereg.networks import new_network

ROUNDS = 15


def seconds_per_step(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Forward, backward, and a step of SGD."""
    optimizer = net.optimizer
    start = time.perf_counter()
    loss = F.cross_entropy(net(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", nargs="?", default="resnet18")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (arguments.batch,))
    nets = {}
    for name, ungated in (("ungated", True), ("gated", False)):
        net = new_network("sparsereg", arguments.network, without_using_gate=ungated)
        nets[name] = net.to(memory_format=torch.channels_last).train()
        net.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        seconds_per_step(net, images, labels)
    ratios, times = [], {name: [] for name in nets}
    for _ in range(ROUNDS):
        for name, net in nets.items():
            times[name].append(seconds_per_step(net, images, labels))
        ratios.append(times["gated"][-1] / times["ungated"][-1])
    low, _, high = quantiles(ratios, n=4)
    print(f"{arguments.network}, batch {arguments.batch}, {machine()}")
    print(*(f"{name} {1000 * median(t):.0f} ms" for name, t in times.items()), sep=", ")
    print(f"gated / ungated: median {median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
