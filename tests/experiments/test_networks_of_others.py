"""Networks of timm and torchvision: cut exactly, at the predicted size, and half of them can go.

pytest -m coverage tests/experiments/test_networks_of_others.py     # all, half an hour
"""

import pytest
import torch

from benchmarks import network_names, networks
from sparsereg.surgery.insert import place_gates

TORCHVISION = [("torchvision", name) for name in network_names.TORCHVISION]
TIMM = [("timm", name) for name in network_names.TIMM]
UNREACHABLE = ("resnest14d", "swin_t")  # see docs/networks.md
FASTEST = (  # of timm's, no two of a kind
    *("ese_vovnet19b_slim", "dla46_c", "convnext_atto", "regnety_002", "resnest14d"),
)


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
    check(library, name, network_names.image_size(library, name), patterns=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FASTEST)
def test_the_fastest_of_timm(name):
    check("timm", name, size=32, patterns=1)
