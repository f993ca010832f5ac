"""The cut GoogleNet computes what the masked one computes, and has the sizes of the reference."""

import copy
import json
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from networks import CLOSED, OPEN, assert_same, images, parameters, randomise
from torch import nn
from torch.nn import functional as F

from sparsereg.compact import compact, fold
from sparsereg.model.googlenet import ACTIVATIONS, GoogleNet
from sparsereg.sparsity.size import count
from sparsereg.surgery.compaction import cut_closed  # `compact` without its own comparison

REFERENCE = json.loads((Path(__file__).parents[1] / "reference/compact_googlenet.json").read_text())


@cache
def trained(act_fn_name: str) -> GoogleNet:
    """A network whose BatchNorm layers have learned statistics and weights."""
    torch.manual_seed(0)
    net = GoogleNet(act_fn_name=act_fn_name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(5):
        batch = torch.randn(16, 3, 16, 16) + torch.randn(16, 3, 1, 1)
        F.cross_entropy(net(batch), torch.randint(10, (16,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@cache
def randomised(act_fn_name: str) -> GoogleNet:
    """The same in float64, with uncommon statistics and weights, also negative ones."""
    net = randomise(copy.deepcopy(trained(act_fn_name)).double())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # see `calibrate`
    return net.eval()


def calibrate(net: GoogleNet) -> None:
    """BatchNorm statistics of the masked network: with others, the image's share of the logits
    vanishes on its way through a few open channels, and nothing can be compared."""
    for module in net.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    with torch.no_grad():
        net(images(8).to(net.head[2].weight))
    net.eval()


def blocks_of(net: GoogleNet) -> list[list[torch.Tensor]]:
    """ln α of each branch of each block."""
    return [[g.qz_loga.data for g in block.gates.values()] for block in net.blocks.values()]


def open_one(block: list[torch.Tensor], value: float) -> None:
    """Opens one channel of a block."""
    branch = block[torch.randint(len(block), ())]
    branch[torch.randint(len(branch), ())] = value


def fractional(block):
    for branch in block:
        branch.uniform_(-2, 2)


def zero_or_one(block):
    for branch in block:
        branch.copy_(torch.where(torch.rand(len(branch)) < 0.3, OPEN, CLOSED))
    open_one(block, OPEN)


def mixed(block):
    for branch in block:
        branch.normal_(-1.5, 3)
    open_one(block, 0.0)


def empty_branches(block):
    mixed(block)
    for branch in block:
        if torch.rand(()) < 0.5:
            branch.fill_(CLOSED)
    open_one(block, 0.0)


def one_channel(block):
    for branch in block:
        branch.fill_(CLOSED)
    open_one(block, torch.rand(()).item())


def all_open(block):
    for branch in block:
        branch.fill_(OPEN)


PATTERNS = (fractional, zero_or_one, mixed, empty_branches, one_channel, all_open)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act_fn_name", "pattern", "number"),
    [
        *(("relu", pattern, 3) for pattern in PATTERNS),
        *((name, mixed, 3) for name in ACTIVATIONS if name != "relu"),
        *(
            pytest.param(name, pattern, 30, marks=pytest.mark.coverage)
            for name in ACTIVATIONS
            for pattern in PATTERNS
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_outputs_stay_the_same(act_fn_name, pattern, number):
    """So many random networks of each kind; a third of that of other activations than relu. Of some
    with one open channel a block, a ReLU closes that one: their logits are constant."""
    net, x = randomised(act_fn_name), images(16)
    torch.manual_seed(1)
    number = 1 if pattern is all_open else number if act_fn_name == "relu" else number // 3
    constant = 0
    for _ in range(number):
        for block in blocks_of(net):
            pattern(block)
        calibrate(net)
        with torch.no_grad():
            masked, cut = net(x), cut_closed(net, image_shape=(3, 32, 32))
            if torch.allclose(masked, masked[:1], rtol=1e-5):
                for small in (cut, fold(cut)):
                    assert torch.allclose(masked, small(x), rtol=1e-10)
                constant += 1
                continue
            assert_same(masked, cut(x))
            assert_same(masked, fold(cut)(x))
    assert constant <= (number // 5 if pattern is one_channel else 0)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
def test_outputs_in_single_precision(pattern):
    """On the trained network: the randomised one magnifies rounding, its own float32 logits are up
    to 8e-6 away from those in float64. (Rounding knows no activations.)"""
    net, x = copy.deepcopy(trained("relu")), images(16).float()
    torch.manual_seed(2)
    for block in blocks_of(net):  # which gates, the test above varies more
        pattern(block)
    with torch.no_grad():
        masked, cut = net(x), cut_closed(net, image_shape=(3, 32, 32))
        for small in (cut, fold(cut)):
            assert (masked - small(x)).abs().max() <= 1e-5 * masked.abs().max()


@pytest.mark.parametrize("case", [REFERENCE["dense"], *REFERENCE["cases"]])
def test_sizes_of_the_reference(case):
    """Wherever the open channels are; which ones, changes no size."""
    net = GoogleNet()
    for branch, width in zip(chain(*blocks_of(net)), chain(*case["open_channels"]), strict=True):
        branch.fill_(CLOSED)
        branch[torch.randperm(len(branch))[:width]] = OPEN
    cut = compact(net)
    assert parameters(cut) == case["params"]
    assert count(cut, (3, 32, 32)) == {"params": case["params"], "macs": case["macs"]}
