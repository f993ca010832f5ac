"""What a number in the call decides about an operation."""

import pytest
import torch
from torch import nn

from sparsereg.graph.operations import Kind, kind_of
from sparsereg.graph.tracing import trace


class Power(nn.Module):
    def __init__(self, power):
        super().__init__()
        self.conv, self.power = nn.Conv2d(3, 4, 1), power

    def forward(self, x):
        return self.power(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    "power, kind",
    [
        (lambda x: x**2, Kind.ZERO),
        (lambda x: x.pow(3), Kind.ZERO),
        (lambda x: torch.pow(x, 0.5), Kind.ZERO),
        (lambda x: x**0, Kind.BARRIER),
        (lambda x: x.pow(-1), Kind.BARRIER),
    ],
)
def test_powers(power, kind):
    traced = trace(Power(power), torch.zeros(1, 3, 8, 8))
    [node] = [n for n in traced.graph.nodes if "pow" in n.name]
    assert kind_of(traced, node) == kind
