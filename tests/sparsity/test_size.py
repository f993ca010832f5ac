"""Sizes of the cut network against tests/reference/compact_googlenet.json."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch

from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.size import count, measure, open_channels

REFERENCE = json.loads((Path(__file__).parents[1] / "reference/compact_googlenet.json").read_text())
IMAGE = (3, 32, 32)


def with_open_channels(widths: list[list[int]]) -> GoogleNet:
    """A gated network in which the first channels of each branch are open, some only partly."""
    net = GoogleNet()
    for gate, width in zip(net.gates.values(), chain(*widths), strict=True):
        gate.qz_loga.data.fill_(-2.5)  # just closed: it opens at -2.398
        gate.qz_loga.data[:width] = -2.3
    return net


@pytest.mark.parametrize("case", [REFERENCE["dense"], *REFERENCE["cases"]])
def test_reference_sizes(case):
    net = with_open_channels(case["open_channels"])
    assert list(open_channels(net).values()) == list(chain(*case["open_channels"]))
    size = measure(net, IMAGE)
    assert (size["params"], size["macs"]) == (case["params"], case["macs"])
    assert size["sparsity"] == pytest.approx(case.get("sparsity", 0), abs=1e-12)
    assert (size["dense_params"], size["dense_macs"]) == (260_650, 79_643_904)


def test_without_gates_nothing_is_cut():
    size = measure(GoogleNet(without_using_gate=True), IMAGE)
    assert size["params"] == 260_650 and size["sparsity"] == 0


def test_nothing_is_left_of_a_collapsed_network():
    widths = [list(w) for w in REFERENCE["dense"]["open_channels"]]
    widths[4] = [0, 0, 0, 0]
    net = with_open_channels(widths).eval()
    size = measure(net, IMAGE)
    assert (size["params"], size["macs"], size["sparsity"]) == (0, 0, 1)
    assert size["dense_params"] == 260_650
    logits = net(torch.randn(2, *IMAGE))
    assert torch.equal(logits[0], logits[1]), "its output is constant"


def test_other_classes_and_image_sizes():
    size = count(GoogleNet(num_classes=100), (3, 64, 64))
    assert size["params"] == 260_650 + 90 * 129
    assert size["macs"] == 4 * (79_643_904 - 1_280) + 12_800


def test_measuring_changes_nothing():
    net = with_open_channels(REFERENCE["cases"][0]["open_channels"]).double().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measure(net, IMAGE)
    assert net.training and next(net.parameters()).dtype == torch.float64
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
