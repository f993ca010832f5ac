"""y += x changes the tensor under all its names; torch.fx records it as y = y + x."""

import pytest
import torch
from networks import assert_same, set_gates
from rare import Rare, conv, examples, insert
from torch import Tensor
from torch.nn import functional as F

from sparsereg.compact import compact, fold
from sparsereg.model.basic_l0_blocks import gate_layers


def two_names(n: Rare, x: Tensor) -> Tensor:
    y = z = F.relu(n.e(x))
    y += n.f(x)
    return y * z


def all_operators(n: Rare, x: Tensor) -> Tensor:
    y = z = n.e(x)
    y += x
    y -= 0.5
    y *= F.relu(n.f(x))
    y /= 3
    return y + 2 * z


def scaled_parts(n: Rare, x: Tensor) -> Tensor:
    first, second = n.e(x).chunk(2, 1)
    first *= 0.5
    second += first
    return torch.cat([first, second], 1)


def numbers(n: Rare, x: Tensor) -> Tensor:
    size = x.shape[-1]
    size *= 9
    size //= 9
    return F.adaptive_avg_pool2d(n.e(x), size - 2)


class Centred(Rare):
    """It changes the images that it is given, which are read twice."""

    def forward(self, x: Tensor) -> Tensor:
        first = x
        x -= x.mean((1, 2, 3), keepdim=True)
        return super().forward(x + first)


NETWORKS = {
    "two names": lambda: Rare(two_names, e=conv(), f=conv()),
    "all operators": lambda: Rare(all_operators, e=conv(), f=conv()),
    "scaled parts": lambda: Rare(scaled_parts, e=conv()),
    "numbers": lambda: Rare(numbers, e=conv()),
    "the images": lambda: Centred(lambda n, x: n.e(x), e=conv()),
}


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_exact(name):
    net, x = NETWORKS[name](), examples()
    gated = insert(net)
    for gate in gate_layers(gated).values():
        gate.qz_loga.fill_(10.0)
    assert_same(net(x.clone()), gated(x), 1e-9)
    set_gates(gated, 0.5)
    small = compact(gated)
    assert_same(gated(x), small(x), 1e-9)
    assert_same(gated(x), fold(small)(x), 1e-9)
