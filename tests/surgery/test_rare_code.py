"""What people's networks do now and then: the same outputs after the cut, folded, and from a file;
or a line that says why not."""

import random
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import CLOSED, assert_same, randomise, set_gates
from rare import Rare, assert_exact, conv, examples, insert
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops.misc import FrozenBatchNorm2d

import sparsereg
from sparsereg.compact import compact, fold
from sparsereg.errors import UserError
from sparsereg.export.formats import export
from sparsereg.model.basic_l0_blocks import gate_layers


def passed_on(forward: Callable) -> Callable:
    def call(*args):
        return forward(*args)

    return call


class Decorated(Rare):
    @passed_on
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def twice(n, x):
    return F.relu(n.first(n.e(x))) + F.relu(n.second(n.e(2 * x)))


def channel_attention(n, x):
    z, w = n.norm(n.e(x)), n.norm.weight.abs()
    return z * (z * (w / w.sum()).view(1, -1, 1, 1)).sigmoid()


def two_dilations(n, x):
    other = F.conv2d(x, n.e.weight, n.e.bias, padding=2, dilation=2)
    return F.relu(n.e(x)) + F.relu(other)


def masked(n, x):
    return x * x.masked_fill(x < -5.0, float("-inf")).softmax(1)


def response(n, x):
    """As in ConvNeXt v2."""
    y = n.e(x)
    length = torch.linalg.vector_norm(y, ord=2, dim=(2, 3), keepdim=True)
    return y * length / (torch.linalg.norm(length, dim=1, keepdim=True) + 1e-6)


class Pair(nn.Conv2d):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return super().forward(x), 0


class Silent(Rare):
    def train(self, mode: bool = True) -> None:
        super().train(mode)


ACCEPTED = {
    "a convolution with two norms": lambda: Rare(
        twice, e=conv(), first=nn.BatchNorm2d(8), second=nn.BatchNorm2d(8)
    ),
    "the weight of a norm": lambda: Rare(channel_attention, e=conv(), norm=nn.BatchNorm2d(8)),
    "one weight, two dilations": lambda: Rare(two_dilations, e=conv()),
    "size by name": lambda: Rare(
        lambda n, x: n.e(x).view(x.size(dim=0), x.size(dim=1), 9, 9), e=conv()
    ),
    "cat by axis": lambda: Rare(
        lambda n, x: n.f(torch.cat([x, F.relu(n.e(x))], axis=1)), e=conv(), f=nn.Conv2d(16, 8, 1)
    ),
    "cat by name": lambda: Rare(
        lambda n, x: n.f(torch.cat(tensors=[x, n.e(x)], dim=1)), e=conv(), f=nn.Conv2d(16, 8, 1)
    ),
    "a number of NumPy": lambda: Rare(lambda n, x: x * np.sqrt(0.5)),
    "settings of NumPy": lambda: Rare(
        lambda n, x: n.drop(n.e(x)),
        e=nn.Conv2d(8, 8, np.int64(3), padding=1),
        drop=nn.Dropout(np.linspace(0, 0.1, 2)[1]),
    ),
    "minus infinity": lambda: Rare(masked),
    "norms of torch.linalg": lambda: Rare(response, e=conv()),
    "padding of minus infinity": lambda: Rare(
        lambda n, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-float("inf")), 2)
    ),
    "train() gives nothing": lambda: Silent(lambda n, x: n.e(x), e=conv()),
    "squeeze": lambda: Rare(
        lambda n, x: n.e(x * x.mean((2, 3)).squeeze().view(-1, 8, 1, 1)), e=conv()
    ),
    "a layer named squeeze": lambda: Rare(lambda n, x: n.squeeze(x), squeeze=conv()),
    "two crops in one batch": lambda: Rare(
        lambda n, x: sum(F.relu(n.f(F.relu(n.e(torch.cat([x, 2 * x], 0))))).chunk(2, 0)),
        e=conv(),
        f=conv(),
    ),
    "temperature": lambda: Rare(
        lambda n, x: x * n.temperature, temperature=nn.Parameter(torch.tensor(1.7))
    ),
    "qz_loga and draw": lambda: Rare(
        lambda n, x: n.draw(n.qz_loga(x)), draw=conv(), qz_loga=conv()
    ),
    "shared_relu": lambda: Rare(
        lambda n, x: x + n.shared_relu(F.relu(n.e(x))), e=conv(), shared_relu=conv()
    ),
    "an image size of its own": lambda: Rare(
        lambda n, x: n.e(x) if tuple(x.shape[2:]) == n.image_shape[1:] else x,
        e=conv(),
        image_shape=(3, 9, 9),
    ),
    "before a number of NumPy": lambda: Rare(lambda n, x: np.sqrt(0.5) * n.e(x), e=conv()),
    "a memory format": lambda: Rare(
        lambda n, x: n.e(x.contiguous(memory_format=torch.channels_last)).to(
            memory_format=torch.contiguous_format
        ),
        e=conv(),
    ),
    "a layer with two results": lambda: Rare(lambda n, x: n.e(x)[0], e=Pair(8, 8, 3, padding=1)),
    "what it has": lambda: Rare(
        lambda n, x: x.tensors if hasattr(x, "tensors") else n.e(x), e=conv()
    ),
    "a decorated forward": lambda: Decorated(lambda n, x: n.e(x), e=conv()),
    "a frozen norm": lambda: Rare(
        lambda n, x: F.relu(n.norm(n.e(x))), e=conv(), norm=FrozenBatchNorm2d(8)
    ),
    "a buffer for every image": lambda: Rare(
        lambda n, x: n.f(torch.cat([x, n.m[None].expand(x.size(0), -1, -1, -1)], 1)),
        m=nn.Buffer(torch.rand(2, 9, 9)),
        f=nn.Conv2d(10, 8, 1),
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_exact(name, tmp_path):
    gated = insert(ACCEPTED[name]())
    assert_exact(gated, tmp_path / "net.pt")
    gated.double().train()
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.zero_()
    gated(examples()).square().sum().backward()
    assert all(gate.qz_loga.grad.abs().sum() > 0 for gate in gate_layers(gated).values())


def test_closed_attention_of_two_branches():
    """Each is multiplied by a constant of its own, which no merged convolution has."""

    def attended(n, x):
        branches = [(n.one, n.down, n.up), (n.other, n.less, n.more)]
        return torch.cat(
            [
                F.relu(c(x)) * up(F.relu(down(x.mean((2, 3), keepdim=True)))).sigmoid()
                for c, down, up in branches
            ],
            1,
        )

    parts = {"one": nn.Conv2d(8, 3, 1), "other": nn.Conv2d(8, 5, 1)}
    parts |= {"down": nn.Conv2d(8, 2, 1), "up": nn.Conv2d(2, 3, 1)}
    parts |= {"less": nn.Conv2d(8, 2, 1), "more": nn.Conv2d(2, 5, 1)}
    gated = insert(Rare(attended, **parts))
    for name in ("down", "less"):
        gate_layers(gated)[name].qz_loga.data.fill_(CLOSED)
    with torch.no_grad():
        assert_same(gated(examples()), fold(compact(gated))(examples()), 1e-9)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


@pytest.mark.parametrize("layer", [Standardised, lambda *sizes: weight_norm(nn.Conv2d(*sizes))])
def test_computed_weights_of_a_network_that_was_not_cut(layer, tmp_path):
    net = Rare(lambda n, x: F.relu(n.norm(n.e(x))), e=layer(8, 8, 1), norm=nn.BatchNorm2d(8))
    net = randomise(net.eval())
    x = examples().float()
    with torch.no_grad():
        assert_same(net(x), fold(net)(x), 1e-4)
        export(net, (3, 9, 9), tmp_path)
        assert_same(net(x), torch.export.load(tmp_path / "compact.pt2").module()(x), 1e-4)


@pytest.mark.parametrize("squeeze", [lambda x: x.squeeze(), lambda x: x.squeeze(1)])
def test_one_channel_is_left_before_a_squeeze(squeeze):
    net = Rare(lambda n, x: n.e(squeeze(x)), e=conv())
    gated = insert(net)
    gate_layers(gated)["a"].qz_loga.data[1:] = CLOSED
    with torch.no_grad():
        assert_same(gated(examples()), compact(gated)(examples()), 1e-9)


@pytest.mark.parametrize("double", [False, True])
def test_what_is_computed_of_a_buffer_follows_it(double):
    net = Rare(
        lambda n, x: n.m * x + (1 - n.m) * n.e(x) * n.each[:, None, None],
        e=conv(),
        m=nn.Buffer(torch.tensor(0.5)),
        each=nn.Buffer(torch.rand(8)),
    ).eval()
    x, gated = examples().float(), sparsereg.insert_gates(net, examples().float(), show=False)
    if double:
        net, gated, x = net.double(), gated.double(), x.double()
    state = {name: torch.rand_like(t) if t.dim() else t * 1.6 for name, t in net.named_buffers()}
    for each in (net, gated.eval()):
        each.load_state_dict(state, strict=False)
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.fill_(10.0)
    with torch.no_grad():
        assert_same(net(x), gated(x), 1e-6)


class Depth(nn.Module):
    """Stochastic depth by Python's generator, or torch's."""

    def __init__(self, draw: Callable[[], float]):
        super().__init__()
        self.f, self.draw = conv(), draw

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.draw() < 0.4:
            return x
        return x + F.relu(self.f(x))


@pytest.mark.parametrize(
    "draw", [random.random, lambda: np.random.rand(), lambda: torch.rand(1).item()]
)
@pytest.mark.parametrize("seed", range(4))
def test_code_that_draws_random_numbers_goes_on_doing_so(draw, seed):
    random.seed(seed), np.random.seed(seed)
    gated = insert(Rare(lambda n, x: n.e(x), e=Depth(draw)))
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.fill_(30.0)  # always 1
    gated.train()
    with torch.no_grad():
        assert len({round(gated(examples()).sum().item(), 6) for _ in range(40)}) == 2


class Clamped(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.clamp(-8, 8))


def test_a_layer_that_cuts_off_large_numbers_is_not_torchs():
    net = Rare(lambda n, x: F.relu(n.e(x)), e=Clamped(8, 8, 3, padding=1)).double().eval()
    x = 255 * examples()
    gated = sparsereg.insert_gates(net, torch.zeros(1, 3, 9, 9), show=False).eval()
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.fill_(10.0)
    with torch.no_grad():
        assert_same(net(x), gated(x), 1e-9)


def test_images_of_other_than_three_dimensions_have_no_file(tmp_path):
    net = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.Flatten(), nn.Linear(96, 5)
    )
    gated = sparsereg.insert_gates(net, torch.zeros(1, 3, 16), show=False)
    with pytest.raises(UserError, match=re.escape("image_shape=(3, 16) must be (C, H, W)")):
        sparsereg.save(gated, tmp_path / "net.pt", (3, 16), "abcde", [0.0] * 3, [1.0] * 3)


def test_padding_of_channels_and_by_the_size_of_positions():
    def pad(n, x):
        return n.e(F.pad(x, (0, x.shape[3] % 2, 0, 0, 3, 1)))

    gated = insert(Rare(pad, e=nn.Conv2d(12, 8, 3, padding=1)))
    set_gates(gated, 0.5)
    small = compact(gated)
    for size in (9, 8):
        x = examples()[..., :size, :size]
        assert_same(gated(x), small(x), 1e-9)
