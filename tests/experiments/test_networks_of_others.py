"""Networks of timm and torchvision: cut exactly, at the predicted size, and half of them can go.

pytest -m coverage tests/experiments/test_networks_of_others.py     # all, half an hour
"""

import pytest
import torch

from benchmarks import networks
from sparsereg.surgery.insert import place_gates

TORCHVISION = [("torchvision", name) for name in networks.TORCHVISION]
TIMM = [("timm", name) for name in networks.TIMM]
UNREACHABLE = ("resnest14d", "swin_t")  # see docs/networks.md
FEW = ("regnety_002", "convnext_atto")  # more of them in test_timm_chain


def check(library: str, name: str, size: int, patterns: int) -> None:
    net = networks.make(library, name)
    gated, _ = place_gates(
        net, coupled=True, behind_barriers=True, example=torch.zeros(1, 3, size, size)
    )
    found = networks.check(gated, size, patterns)
    assert found["error"] <= 1e-9 and found["counts"]
    assert name in UNREACHABLE or min(found["params"], found["macs"]) >= 0.5


@pytest.mark.slow
@pytest.mark.coverage
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), TORCHVISION + TIMM)
def test_all(library, name):
    check(library, name, networks.SIZES.get(name, 64), patterns=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW)
def test_a_few_of_timm(name):
    check("timm", name, size=32, patterns=1)
