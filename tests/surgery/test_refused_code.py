"""Code that no graph can follow, or no file can hold: refused by a line that says where."""

import random
import re

import pytest
import torch
from rare import Rare, conv, examples, insert
from torch import Tensor, nn
from torch.nn import functional as F

import sparsereg
from sparsereg.errors import UserError


class Logs(Rare):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        part = y[:, :4]
        part += self.e(y)[:, 4:]  # which changes y
        return self.fc(F.relu(self.b(y)).mean((2, 3)) + x.log().mean((1, 2, 3)).view(-1, 1))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Twice(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.net(x.flip(-1))


def same(net: nn.Module, x: Tensor) -> Tensor:
    return x


def replaced() -> Rare:
    net = Rare(same)
    net.forward = lambda x: net.fc(F.relu(net.b(net.a(x))).mean((2, 3)))
    return net


def scripted() -> Rare:
    with pytest.warns(FutureWarning, match="deprecated"):
        return Rare(same, e=torch.jit.trace(conv(), torch.zeros(1, 8, 9, 9)))


def hooked() -> Rare:
    net = Rare(same)
    net.b.weight.register_hook(lambda gradient: 0 * gradient)
    return net


REFUSED = {
    "random in eval mode": (
        lambda: Rare(lambda n, x: random.choice([n.e, n.f])(x), e=conv(), f=conv()),
        "draws random numbers in eval mode",
    ),
    "one image is another matter": (
        lambda: Rare(lambda n, x: x * (2 if x.shape[0] == 1 else 1)),
        r"test_refused_code\.py line .* depends on the number of images",
    ),
    "the mean of all images": (
        lambda: Rare(
            lambda n, x: x + F.relu(n.f(F.relu(n.e(x.mean(0, keepdim=True))))), e=conv(), f=conv()
        ),
        r"test_refused_code\.py line .*joins images: use sampling=per_batch",
    ),
    "a word of torch.fx": (lambda: Rare(lambda n, x: n.graph(x), graph=conv()), "graph.*rename"),
    "a parameter named gates": (
        lambda: Rare(lambda n, x: x * n.gates, gates=nn.Parameter(torch.ones(8, 1, 1))),
        "gates is the name of the module with the gate layers",
    ),
    "a gate layer's name": (
        lambda: Rare(
            lambda n, x: x * n.gates["a"](x).sigmoid(), gates=nn.ModuleDict({"a": conv()})
        ),
        "gates is the name of the module with the gate layers",
    ),
    "a gradient hook": (hooked, "b.weight has a hook on its gradient"),
    "a forward of its own": (replaced, "forward of the network .* is not that of its class"),
    "a network that is compiled": (lambda: torch.compile(Rare(same)), "network .* is compiled"),
    "TorchScript": (scripted, "e .* is TorchScript"),
    "an autograd.Function": (
        lambda: Rare(lambda n, x: Square.apply(x)),
        r"test_refused_code\.py line .*keeps gradients back .*autograd\.Function",
    ),
    "every layer twice": (
        lambda: Twice(Rare(same)),
        "no channels that can be removed.*called twice",
    ),
    "several precisions": (
        lambda: Rare(lambda n, x: n.e(x.to(torch.bfloat16)), e=conv()),
        r"several precisions.*test_refused_code\.py line",
    ),
    "a file cannot hold it": (
        lambda: Rare(lambda n, x: n.e(x.real), e=conv()),
        r"getattr.*test_refused_code\.py line .*cannot be saved",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        insert(make())
    assert re.search(words, str(caught.value), re.DOTALL), caught.value


def test_the_last_comparison_counts_where_outputs_are_finite():
    net = Logs(lambda n, x: x, e=conv()).eval()
    with pytest.raises(UserError, match=r"computes something else|differs by"):
        sparsereg.insert_gates(net, examples().float().abs() + 0.1, show=False)
