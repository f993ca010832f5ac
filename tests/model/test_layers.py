"""Layers that torch, or a library beneath it, computes wrongly, and how they are kept from it."""

import pytest
import torch
from forked import FORKS
from torch import nn

from sparsereg.graph.nodes import check_modules
from sparsereg.model.layers import channels_last, protect_narrow_strides


def train(channels: int, stride: tuple[int, int]) -> None:
    """Gradients in channels_last and not, several times, with memory in use around."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, 16, 1, stride=stride, bias=False))
    images = torch.randn(32, channels, 16, 16)
    net(images).square().mean().backward()
    expected = net[0].weight.grad.clone()
    net = protect_narrow_strides(channels_last(net))
    for _ in range(12):
        net.zero_grad()
        x = images.to(memory_format=torch.channels_last).requires_grad_()
        net(x).square().mean().backward()
        torch.testing.assert_close(net[0].weight.grad, expected)
        around = [torch.randn(17 * n) for n in range(100)]
        del around


@pytest.mark.slow
@pytest.mark.parametrize("stride", [(2, 2), (1, 2)])
@pytest.mark.parametrize("channels", [1, 3, 7, 15])
def test_gradients_of_narrow_strides(channels, stride):
    """In a process of its own, which oneDNN ends (issue 6035) if it is given channels_last."""
    process = FORKS.Process(target=train, args=(channels, stride))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_others_stay_channels_last():
    kinds = (
        nn.Conv2d(3, 8, 3, 2),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 32, 1, 2),
        nn.Conv2d(32, 8, 1, 2),
    )
    net = protect_narrow_strides(channels_last(nn.Sequential(*kinds)))
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    formats = []
    for layer in net:
        x = layer(x)
        formats.append(x.is_contiguous(memory_format=torch.channels_last))
    assert formats == [True, True, False, False]
    assert not net[3]._forward_pre_hooks, "32 channels are enough"
    check_modules(net)  # hooks of others are refused
