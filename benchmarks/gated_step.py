"""A training step with all gates beside one without them, or without those of one kind, in turns.

python -m benchmarks.gated_step [NETWORK] [--batch 32]
python -m benchmarks.gated_step convnext_atto --library timm --size 64 --without behind_barriers
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
ALL = {"coupled": True, "behind_barriers": True}


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
    parser.add_argument("--library", default="sparsereg")
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--without", choices=["gates", *ALL], default="gates")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    shape = (3, arguments.size, arguments.size)
    images = torch.randn(arguments.batch, *shape).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (arguments.batch,))
    without = f"without {arguments.without}"
    less = (
        {"without_using_gate": True} if arguments.without == "gates" else {arguments.without: False}
    )
    nets = {}
    for name, settings in ((without, ALL | less), ("gated", ALL)):
        net = new_network(arguments.library, arguments.network, image_shape=shape, **settings)
        nets[name] = net.to(memory_format=torch.channels_last).train()
        net.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        seconds_per_step(net, images, labels)
    ratios, times = [], {name: [] for name in nets}
    for _ in range(ROUNDS):
        for name, net in nets.items():
            times[name].append(seconds_per_step(net, images, labels))
        ratios.append(times["gated"][-1] / times[without][-1])
    low, _, high = quantiles(ratios, n=4)
    print(f"{arguments.network}, batch {arguments.batch}, {machine()}")
    print(*(f"{name} {1000 * median(t):.0f} ms" for name, t in times.items()), sep=", ")
    print(f"gated / {without}: median {median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
