"""The compiled kernels compute what torch's operations do, forward and backward, to rounding."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsereg.model import fused, kernels
from sparsereg.model.googlenet import GoogleNet
from sparsereg.model.layers import BatchNorm, MaxPool, normalise

pytestmark = pytest.mark.skipif(bool(kernels.why_not()), reason=f"no kernels: {kernels.why_not()}")
ROUNDING = 2**-8  # of bfloat16, relative


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def assert_close(found: torch.Tensor, expected: torch.Tensor, roundings: float = 1.01) -> None:
    """To so many roundings of each value, or of the mean size of them where that is more."""
    expected = expected.float()
    allowed = ROUNDING * roundings * torch.maximum(expected.abs(), expected.abs().mean())
    assert ((found.float() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("widths", [(16,), (8, 24, 5), (1, 130)])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm(widths, relu):
    """Of tensors that a concatenation would join; the reference is torch's, in float64."""
    norms = [BatchNorm(width) for width in widths]
    for norm in norms:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    xs = [images(4, w, 7, 5, seed=w).requires_grad_() for w in widths]
    expected_xs = [x.detach().double().requires_grad_() for x in xs]
    joint = nn.BatchNorm2d(sum(widths)).double()
    for name in ("weight", "bias"):
        getattr(joint, name).data = torch.cat([getattr(norm, name) for norm in norms]).double()

    act_fn = nn.ReLU() if relu else nn.Identity()
    if relu:
        assert all(map(fused.normalises, norms, xs))
        y = normalise(xs, norms, act_fn)
    else:
        weight, bias = (torch.cat([getattr(n, name) for n in norms]) for name in ("weight", "bias"))
        statistics = torch.zeros(sum(widths)), torch.ones(sum(widths))
        y = fused.batch_norm(xs, statistics, weight, bias, 0.1, 1e-5)
    expected = act_fn(joint(torch.cat(expected_xs, 1)))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, expected)

    gy = images(*y.shape, seed=9)
    found = torch.autograd.grad(y, xs, gy, retain_graph=True)
    for g, e in zip(found, torch.autograd.grad(expected, expected_xs, gy.double()), strict=True):
        assert_close(g, e)
    if relu:
        means = torch.cat([norm.running_mean for norm in norms])
        variances = torch.cat([norm.running_var for norm in norms])
        torch.testing.assert_close(means, joint.running_mean.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(variances, joint.running_var.float(), rtol=1e-5, atol=1e-6)


def test_gradients_of_weight_and_bias():
    norm, x = BatchNorm(12), images(4, 12, 6, 6)
    reference, gy = copy.deepcopy(norm).double(), images(4, 12, 6, 6, seed=1)
    norm(x).backward(gy)
    weight, bias = reference.parameters()
    F.batch_norm(x.double(), None, None, weight, bias, training=True).backward(gy.double())
    for p, q in zip(norm.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad.float(), rtol=1e-4, atol=1e-3)


def test_a_slice_of_the_channels_is_read_where_it_lies():
    whole, norm = images(3, 20, 5, 5), BatchNorm(6)
    part = whole[:, 4:10]
    assert torch.equal(copy.deepcopy(norm)(part), norm(part.contiguous()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (2, 3)])
def test_max_pool(stride, size):
    """The same values; gradients at the same places, ties too."""
    x = images(3, 37, *size).round().requires_grad_()  # small whole numbers: many ties
    pool, expected_x = MaxPool(stride), x.detach().clone().requires_grad_()
    assert fused.takes(x)
    y, expected = pool(x), F.max_pool2d(expected_x, 3, stride, 1)
    assert torch.equal(y, expected)
    gy = torch.ones_like(y)  # sums of at most nine ones are exact
    y.backward(gy), expected.backward(gy)
    assert torch.equal(x.grad, expected_x.grad)


def test_a_network_learns_the_same(monkeypatch):
    """Gradients of GoogleNet are as near to those in float32 with the kernels as without."""
    torch.manual_seed(0)
    net, x = GoogleNet(10, without_using_gate=True), torch.randn(16, 3, 16, 16)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(16) % 10

    def gradients() -> torch.Tensor:
        model = copy.deepcopy(net).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    dtype = torch.float32
    exact = gradients()
    dtype = torch.bfloat16
    with_kernels = gradients()
    monkeypatch.setattr(kernels, "library", lambda: None)
    without = gradients()
    errors = [((g - exact).norm() / exact.norm()).item() for g in (with_kernels, without)]
    assert 0 < errors[0] < 1.1 * errors[1]
    assert not torch.equal(with_kernels, without)


def test_what_the_kernels_leave_to_torch():
    x = images(2, 4, 3, 3)
    assert fused.takes(x) and not fused.takes(x.float()) and not fused.takes(x[:, 0])
    assert fused.normalises(BatchNorm(4), x) and not fused.normalises(BatchNorm(4).eval(), x)
    assert not fused.takes(images(1, 4, 1, 1)), "a mean over one pixel"
