"""Random networks from a grammar of what people write."""

import random
from itertools import pairwise

import torch
from grammar_parts import ACTIVATIONS, SIZE, Block, Frozen, NormAct, Standardised
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune


class Grammar:
    """Draws the parts of one network; `c` are channels, `size` pixels of a side."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def width(self) -> int:
        return self.random.choice((2, 4, 4, 6, 8))

    def act(self):
        return ACTIVATIONS[self.random.choice([*ACTIVATIONS])]()

    def conv(self, c: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1):
        kind = self.random.choice([nn.Conv2d] * 9 + [Standardised])
        bias = self.random.random() < 0.5
        conv = kind(c, out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        change = self.random.random()
        if change < 0.03:
            return parametrizations.weight_norm(conv)
        if change < 0.06:
            return parametrizations.spectral_norm(conv)
        return prune.random_unstructured(conv, "weight", 0.3) if change < 0.07 else conv

    def layer(self, c: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> Block:
        """Convolution, norm and activation in one of the usual orders."""
        conv, act = self.conv(c, out, kernel, stride, groups), self.act()
        norm = self.random.choice((nn.BatchNorm2d, nn.BatchNorm2d, NormAct, None))
        if norm and self.random.random() < 0.2:
            return Block(lambda n, x: n.conv(n.act(n.norm(x))), conv=conv, act=act, norm=norm(c))
        if norm is None:
            return Block(lambda n, x: n.act(n.conv(x)), conv=conv, act=act)
        frozen = Frozen(norm(out)) if self.random.random() < 0.1 else norm(out)
        return Block(lambda n, x: n.act(n.norm(n.conv(x))), conv=conv, act=act, norm=frozen)

    def chain(self, c: int, out: int) -> nn.Module:
        """One to three parts that keep the size of the image."""
        widths = [c, *(self.width() for _ in range(self.random.randint(0, 2))), out]
        return nn.Sequential(
            *(self.layer(a, b, self.random.choice((1, 3))) for a, b in pairwise(widths))
        )

    def piece(self, c: int, size: int, depth: int = 0) -> tuple[nn.Module, int]:
        """A block, and the channels behind it."""
        kinds = [name for name in dir(self) if name.startswith("make_")]
        return getattr(self, self.random.choice(kinds))(c, size)

    def make_layer(self, c, size):
        out = self.width()
        return self.layer(c, out), out

    def make_depthwise(self, c, size):
        return self.layer(c, c, groups=c), c

    def make_grouped(self, c, size):
        out = 2 * self.width()
        return self.layer(c, out, groups=2 if c % 2 == 0 else 1), out

    def make_inverted(self, c, size):
        hidden, out = 2 * c, self.width()
        parts = (self.layer(c, hidden, 1), self.layer(hidden, hidden, groups=hidden))
        return nn.Sequential(*parts, self.squeeze(hidden), self.layer(hidden, out, 1)), out

    def make_residual(self, c, size):
        add = self.random.choice((
            lambda n, x: x + n.inside(x),
            lambda n, x: n.inside(x) + x,
            lambda n, x: F.relu(n.inside(x).add(x)),
            lambda n, x: torch.sub(x, n.inside(x)),
            lambda n, x: 0 + x + n.inside(x),
            lambda n, x: torch.stack([x, n.inside(x)]).sum(0),
            lambda n, x: sum([n.inside(x), x]),
            lambda n, x: n.inside(x) + n.shortcut(x),
            lambda n, x: x + n.gamma * n.inside(x),
            lambda n, x: n.inside.forward(x) * x,
            lambda n, x: n.outer(n.inside(x), x),
        ))  # fmt: skip
        gamma = nn.Parameter(torch.randn(c, 1, 1))
        outer = Block(lambda n, x: n.conv(x), conv=self.conv(c, c))
        parts = {"shortcut": self.conv(c, c, 1), "gamma": gamma, "outer": outer}
        return Block(add, inside=self.chain(c, c), **parts), c

    def make_in_place(self, c, size):
        def compute(n, x):
            y = n.inside(x)
            y += x
            return F.relu_(y)

        return Block(compute, inside=self.layer(c, c)), c

    def make_padded(self, c, size):
        def compute(n, x):
            return n.inside(x) + F.pad(x, (0, 0, 0, 0, 1, 3))

        return Block(compute, inside=self.chain(c, c + 4)), c + 4

    def make_cat(self, c, size):
        out = self.width()
        join = self.random.choice((
            lambda n, x: torch.cat([x, n.inside(x)], 1),
            lambda n, x: torch.cat((n.inside(x), x), dim=1),
            lambda n, x: torch.concat([n.inside(x), n.other(x)], dim=-3),
        ))  # fmt: skip
        both = {"inside": self.chain(c, out), "other": self.layer(c, c)}
        return Block(join, **both), c + out

    def make_parts(self, c, size):
        if c % 2:
            return self.make_layer(c, size)
        half = c // 2
        cut = self.random.choice((
            lambda n, x: torch.cat([n.a(x[:, : c // 2]), x[:, c // 2 :]], 1),
            lambda n, x: torch.cat([(y := x.chunk(2, 1))[1], n.a(y[0])], 1),
            lambda n, x: torch.cat([n.a(torch.split(x, c // 2, dim=1)[0]), n.a2(x[:, ::2])], 1),
            lambda n, x: n.both((y := x.split([c // 2, c // 2], 1))[0] * y[1].sigmoid()),
            lambda n, x: n.both(y[0] + y[1]) if (y := x.chunk(2, dim=1)) else x,
        ))  # fmt: skip
        parts = {"a": self.layer(half, half), "a2": self.layer(half, half)}
        return Block(cut, **parts, both=self.layer(half, c)), c

    def make_shuffle(self, c, size):
        if c % 2:
            return self.make_layer(c, size)

        def compute(n, x):
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous()
            return x.view(b, -1, h, w)

        own = Block(compute)
        return self.random.choice((own, nn.ChannelShuffle(2), Block(lambda n, x: x.flip(1)))), c

    def squeeze(self, c: int) -> Block:
        def with_linear(n, x):
            b, c, _, _ = x.size()
            y = n.second(n.act(n.first(n.pool(x).view(b, c)))).view(b, c, 1, 1)
            return x * y.expand_as(x)

        hidden, act, gate = (
            self.width(),
            self.act(),
            self.random.choice((torch.sigmoid, F.hardsigmoid)),
        )
        if self.random.random() < 0.4:
            linear = {"first": nn.Linear(c, hidden), "second": nn.Linear(hidden, c)}
            return Block(with_linear, pool=nn.AdaptiveAvgPool2d(1), act=act, **linear)
        layers = {"first": nn.Conv2d(c, hidden, 1), "second": nn.Conv2d(hidden, c, 1)}
        mean = self.random.choice((
            lambda x: x.mean((2, 3), keepdim=True),
            lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: torch.amax(x, dim=[2, 3], keepdim=True),
        ))  # fmt: skip
        return Block(lambda n, x: gate(n.second(n.act(n.first(mean(x))))) * x, act=act, **layers)

    def make_squeeze(self, c, size):
        return self.squeeze(c), c

    def make_normed(self, c, size):
        norm = self.random.choice((
            Block(lambda n, x: n.norm(x.movedim(1, 3)).permute(0, 3, 1, 2), norm=nn.LayerNorm(c)),
            nn.GroupNorm(1, c),
            nn.InstanceNorm2d(c, affine=True),
            nn.PReLU(c),
            Block(lambda n, x: F.normalize(x, dim=1)),
        ))  # fmt: skip
        return norm, c

    def make_mlp(self, c, size):
        """As in ConvNeXt."""

        def compute(n, x):
            y = n.depthwise(x).permute(0, 2, 3, 1)
            y = n.gamma * n.down(n.act(n.up(n.norm(y))))
            return x + y.permute(0, 3, 1, 2)

        linear = {"up": nn.Linear(c, 2 * c), "down": nn.Linear(2 * c, c), "norm": nn.LayerNorm(c)}
        gamma = nn.Parameter(torch.randn(c))
        depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
        return Block(compute, depthwise=depthwise, act=nn.GELU(), gamma=gamma, **linear), c

    def make_attention(self, c, size):
        def compute(n, x):
            b, _, h, w = x.shape
            tokens = x.flatten(2).transpose(1, 2)  # (N, H W, C)
            q, k, v = n.qkv(tokens).chunk(3, dim=-1)
            y = n.out((q @ k.transpose(-2, -1)).softmax(-1) @ v)
            return x + y.transpose(1, 2).reshape(b, -1, h, w)

        return Block(compute, qkv=nn.Linear(c, 3 * c), out=nn.Linear(c, c)), c

    def make_eca(self, c, size):
        def compute(n, x):
            y = n.conv(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
            return x * y.sigmoid()

        return Block(compute, conv=nn.Conv1d(1, 1, 3, padding=1)), c

    def make_pooled(self, c, size):
        pool = self.random.choice((
            nn.MaxPool2d(3, 1, 1),
            Block(lambda n, x: F.avg_pool2d(x, 3, 1, 1)),
            Block(lambda n, x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0)),
            Block(lambda n, x: F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1]),
            nn.Dropout2d(0.2),
            Block(lambda n, x: F.dropout(x, 0.3, n.training)),
            Block(lambda n, x: F.dropout(x, 0.3, False)),
            Block(lambda n, x: x * torch.ones(1) + n.b, b=nn.Parameter(torch.randn(c, 1, 1))),
            Block(lambda n, x: x if x.shape[1] > 3 else x.relu()),
            Block(lambda n, x: n.twice(n.twice(x)), twice=nn.Conv2d(c, c, 1)),
        ))  # fmt: skip
        return pool, c

    def head(self, c: int, size: int) -> nn.Module:
        hidden = self.width()
        simple = self.random.choice((
            lambda n, x: n.fc(x.mean((2, 3))),
            lambda n, x: n.fc(n.pool(x).flatten(1)),
            lambda n, x: n.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)),
            lambda n, x: n.fc(n.pool(x).squeeze(-1).squeeze(-1)),
            lambda n, x: n.fc(n.pool(x).view(x.size(0), -1)),
            lambda n, x: n.fc(n.pool(x)[:, :, 0, 0]),
            lambda n, x: n.conv(n.pool(x)).flatten(1),
            lambda n, x: n.last(n.act(n.first(x.flatten(1)))),
            lambda n, x: n.last(n.act(n.norm(n.first(x.reshape(x.shape[0], -1))))),
            lambda n, x: n.fc(n.pool(x).view(len(x), -1)),
        ))  # fmt: skip
        parts = {"fc": nn.Linear(c, 3), "conv": nn.Conv2d(c, 3, 1), "pool": nn.AdaptiveAvgPool2d(1)}
        parts |= {"first": nn.Linear(c * size * size, hidden), "last": nn.Linear(hidden, 3)}
        return Block(simple, **parts, act=self.act(), norm=nn.BatchNorm1d(hidden))

    def network(self) -> tuple[nn.Module, int]:
        """A network, and the channels of its images."""
        channels = c = self.random.choice((1, 3, 4))
        first = self.width()
        parts: list[nn.Module] = [self.layer(c, first)]
        if self.random.random() < 0.15 and c > 1:
            streams = {"a": self.conv(c - 1, first), "b": self.conv(1, first)}
            parts = [Block(lambda n, x: n.a(x[:, :-1]) + n.b(x[:, -1:]), **streams)]
        c = first
        for _ in range(self.random.randint(1, 5)):
            part, c = self.piece(c, SIZE)
            parts.append(part)
        return nn.Sequential(*parts, self.head(c, SIZE)), channels


def make(seed: int) -> tuple[nn.Module, Tensor]:
    """A network in double precision whose BatchNorms have uncommon statistics, and images."""
    torch.manual_seed(seed)
    net, channels = Grammar(seed).network()
    net = net.double()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net, torch.randn(3, channels, SIZE, SIZE, dtype=torch.float64)
