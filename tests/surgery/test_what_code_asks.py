"""Code that asks what kind of thing its tensors are, and code that only training runs."""

import pytest
import torch
from rare import Rare, assert_exact, conv, examples, insert
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn import functional as F

from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.size import count


class DenseLayer(nn.Module):
    """Of torchvision's DenseNet: reads a tensor, or a list of them."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, 8, 3, padding=1)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        features = [x] if isinstance(x, Tensor) else x
        return F.relu(self.conv(torch.cat(features, 1)))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = DenseLayer(3), DenseLayer(11)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_tensor(x):
            raise TypeError("images")
        features = [x, self.first(x)]
        return self.fc(self.second(features).mean((2, 3)).view(len(x), -1, len(features)).sum(2))


def test_is_it_a_tensor_and_how_many_images(tmp_path):
    assert_exact(insert(Dense()), tmp_path / "net.pt")
    assert not {"isinstance", "len"} & globals().keys()  # as before
    assert torch.is_tensor(torch.zeros(1)) and len(torch.zeros(3)) == 3


def padded(net: Rare, x: Tensor) -> Tensor:
    """As PyramidNet widens its shortcuts."""
    n, c, height, width = x.size()
    return torch.cat((x[:, :5], Variable(torch.zeros(n, c - 5, height, width).to(x.dtype))), 1)


def assigned(net: Rare, x: Tensor) -> Tensor:
    """As a shortcut is widened, or channels are shifted."""
    wide = x.new_zeros(x.size(0), 9, x.size(2), x.size(3))
    wide[:, 1:] = x
    wide[..., -1], wide[:, 0, 2:4] = x[:, :1, :, 0], 2
    shifted = torch.zeros_like(x)
    shifted[:, :4, :, 1:] = x[:, :4, :, :-1]
    shifted[:, 4:, :-1] = x[:, 4:, 1:]
    shifted[shifted > 1] = 1.0
    return shifted + wide[:, 1:] * net.scale


ASKED = {
    "written into": assigned,
    "some of the layers": lambda net, x: nn.Softplus()(net.several[1:](net.several[:1](x))),
    "zeros by number": padded,
    "parts by name": lambda net, x: x - x.max(dim=1, keepdim=True).values,
    "how many": lambda net, x: x * (x.numel() / x.size(0) / 100),
    "transposed": lambda net, x: (x * x.mean((2, 3)).T.mean(1)[:, None, None]).mT,
    "channels by a list": lambda net, x: x[:, [3, 1, 0, 2, 7, 6, 5, 4]],
    "side by side": lambda net, x: torch.hstack([x[:, 4:], x[:, :4]]),
    "the largest, and where": lambda net, x: net.up(*net.down(x)),
}


@pytest.mark.parametrize("name", ASKED)
def test_asked(name, tmp_path):
    several = nn.Sequential(conv(), nn.ReLU(), conv())
    parts = {"several": several, "scale": nn.Parameter(torch.ones(1))}
    parts |= {"down": nn.MaxPool2d(3, return_indices=True), "up": nn.MaxUnpool2d(3)}
    assert_exact(insert(Rare(ASKED[name], **parts)), tmp_path / "net.pt")


def test_a_transformer_of_torch(tmp_path):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    parts = {"encoder": nn.TransformerEncoder(layer, 1)}

    def encode(net: Rare, x: Tensor) -> Tensor:
        y = net.encoder(x.flatten(2).transpose(1, 2))  # (N, positions, C)
        return y.transpose(1, 2).view_as(x)

    assert_exact(insert(Rare(encode, **parts)), tmp_path / "net.pt")


def test_layers_with_one_weight_are_counted_once():
    one, other = conv(), conv()
    other.weight = one.weight
    gated = insert(Rare(lambda net, x: net.other(net.one(x)), one=one, other=other))
    size = ExpectedCost(gated, (3, 9, 9)).dense
    assert {name: size[name] for name in ("params", "macs")} == count(gated, (3, 9, 9))


class DropsInTraining(Rare):
    """As a well-known EfficientNet for CIFAR: not F.dropout(x, p, self.training)."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training:
            y = F.dropout(y, p=0.2)
        return y


def test_dropout_that_only_training_calls(tmp_path):
    gated = insert(DropsInTraining(lambda net, x: x))
    for gate in gate_layers(gated).values():
        nn.init.constant_(gate.qz_loga, 10.0)  # open, without noise
    x = examples()
    assert torch.equal(gated(x), gated(x))
    dropped = gated.train()(x)
    assert not torch.equal(dropped, gated(x)) and (dropped == 0).any()
    assert_exact(gated.eval(), tmp_path / "net.pt")


class SkipsInTraining(nn.Module):
    """Stochastic depth by a value, which cannot be recorded: one operation until it is cut."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(), nn.ReLU(), conv())
        self.register_buffer("share", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x + self.body(x) * self.share
        return x + self.body(x) if torch.bernoulli(self.share) > 0 else x


def test_a_value_that_only_training_asks_for(tmp_path):
    gated = insert(Rare(lambda n, x: n.skips(x), skips=nn.Sequential(SkipsInTraining())))
    x = examples()
    torch.manual_seed(0)
    in_training = {gated.train()(x).sum().item() for _ in range(8)}
    assert len(in_training) > 1
    assert_exact(gated.eval(), tmp_path / "net.pt")


class Masked(nn.Conv2d):
    """A subclass with a buffer that its cut layer does not need."""

    def __init__(self):
        super().__init__(8, 8, 3, padding=1)
        mask = torch.ones_like(self.weight)
        mask[:, :, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


def test_what_a_subclass_has_besides_its_weights(tmp_path):
    gated = insert(Rare(lambda n, x: n.masked(x), masked=Masked()))
    assert "masked.mask" in gated.state_dict()  # a checkpoint of the network fits
    assert_exact(gated, tmp_path / "net.pt")
