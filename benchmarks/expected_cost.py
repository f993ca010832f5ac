"""The expected cost of GoogleNet beside the mean over networks that are really cut.

    python -m benchmarks.expected_cost

2,000 times every gate is drawn open with its own probability, the network cut and counted.
"""

import sys

import torch

from sparsereg.compact import compact
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.size import count

IMAGE = (3, 32, 32)


def draw_sizes(net: GoogleNet, prob_open: torch.Tensor, draws: int) -> torch.Tensor:
    """Parameters and multiply-adds of cut networks, (draws, 2)."""
    sizes = []
    for _ in range(draws):
        is_open = torch.rand(len(prob_open)) < prob_open
        parts = is_open.split([len(gate.qz_loga) for gate in net.gates.values()])
        for gate, part in zip(net.gates.values(), parts, strict=True):
            gate.qz_loga.data = torch.where(part, 3.0, -9.0)
        sizes.append(list(count(compact(net), IMAGE).values()))
    return torch.tensor(sizes, dtype=torch.float64)


def main(draws: int = 2000) -> None:
    for gate_reductions in (False, True):
        torch.manual_seed(0)
        net = GoogleNet(gate_reductions=gate_reductions)
        cost = ExpectedCost(net, IMAGE)
        prob_open = torch.rand(cost.num_gates)
        sizes, expected = draw_sizes(net, prob_open, draws), cost(prob_open)
        for name, counted in zip(("params", "macs"), sizes.T, strict=True):
            error = counted.std().item() / draws**0.5
            mean, formula = counted.mean().item(), expected[name].item() * cost.dense[name]
            print(
                f"gate_reductions={gate_reductions}, {name}: mean of {draws} cut networks "
                f"{mean:,.0f} ± {error:,.0f}, expected {formula:,.0f} "
                f"({(formula - mean) / error:+.2f} standard errors)",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
