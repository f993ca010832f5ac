"""The analysis of channels, against expectations written by hand for small networks."""

import pytest
import torch
from networks import (
    Layer,
    Net,
    Segment,
    assert_same,
    conv,
    head,
    images,
    layers,
    randomise,
    set_gates,
)
from torch import nn

from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.readers import kept
from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.model.googlenet import GoogleNet


def analyse(net: nn.Module) -> ChannelGraph:
    return ChannelGraph(net.eval())


def layer(inputs: Segment, outputs: Segment) -> Layer:
    return Layer((inputs,), (outputs,))


def test_a_gate_inside_a_residual_block_removes_channels():
    net = Net(
        lambda n, x: n.head((s := n.stem(x)) + n.second(n.gate(n.first(s)))),
        stem=conv(3, 8),
        first=conv(8, 6),
        gate=L0Gate(6),
        second=nn.Conv2d(6, 8, 3, padding=1),
        head=head(8),
    )
    graph = analyse(net)
    assert kept(graph) == {}
    assert layers(graph) == {
        "stem.0": layer(Segment(3), Segment(8)),
        "stem.1": layer(Segment(8), Segment(8)),
        "first.0": layer(Segment(8), Segment(6, "gate")),
        "first.1": layer(Segment(6), Segment(6, "gate")),
        "second": layer(Segment(6, "gate"), Segment(8)),
        "head.2": layer(Segment(8), Segment(4)),
    }


def test_a_gate_before_an_addition_removes_nothing():
    """Its channels are those of the residual stream, which the other side still carries."""
    net = Net(
        lambda n, x: n.head(n.stem(x) + n.outer(n.second(n.inner(n.first(x))))),
        stem=conv(3, 8),
        first=conv(3, 6),
        inner=L0Gate(6),
        second=conv(6, 8),
        outer=L0Gate(8),
        head=head(8),
    )
    graph = analyse(net)
    assert list(kept(graph)) == ["outer"]
    assert "8 of 8" in kept(graph)["outer"] and "add" in kept(graph)["outer"]
    assert layers(graph)["second.0"] == layer(Segment(6, "inner"), Segment(8))
    assert layers(graph)["head.2"] == layer(Segment(8), Segment(4))


def test_a_gate_behind_a_depthwise_convolution_removes_the_expanded_channels():
    net = Net(
        lambda n, x: n.head(n.project(n.gate(n.depthwise(n.expand(x))))),
        expand=conv(3, 12, 1),
        depthwise=nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU6()
        ),
        gate=L0Gate(12),
        project=nn.Conv2d(12, 8, 1),
        head=head(8),
    )
    graph = analyse(net)
    assert kept(graph) == {}
    gated = Segment(12, "gate")
    assert layers(graph) == {
        "expand.0": layer(Segment(3), gated),
        "expand.1": layer(Segment(12), gated),
        "depthwise.0": layer(Segment(12), gated),
        "depthwise.1": layer(Segment(12), gated),
        "project": layer(gated, Segment(8)),
        "head.2": layer(Segment(8), Segment(4)),
    }


FLATTEN = {
    "nn.Flatten": lambda n, x: n.flatten(x),
    "torch.flatten": lambda n, x: torch.flatten(x, 1),
    "start_dim": lambda n, x: torch.flatten(x, start_dim=1),
    "method": lambda n, x: x.flatten(1),
    "view": lambda n, x: x.view(x.size(0), -1),
    "reshape": lambda n, x: x.reshape(x.shape[0], -1),
}


@pytest.mark.parametrize("flatten", FLATTEN.values(), ids=FLATTEN)
def test_vgg(flatten):
    torch.manual_seed(0)
    net = Net(
        lambda n, x: n.classifier(flatten(n, n.features(x))),
        features=nn.Sequential(
            *(conv(3, 4), L0Gate(4), nn.MaxPool2d(2)), *(conv(4, 6), L0Gate(6), nn.AvgPool2d(2))
        ),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(nn.Linear(6 * 2 * 2, 5), nn.Tanh(), L0Gate(5), nn.Linear(5, 4)),
    )
    graph = analyse(net)
    first, second, hidden = "features.1", "features.4", "classifier.2"
    assert kept(graph) == {} and list(graph.gates) == [first, second, hidden]
    assert layers(graph) == {
        "features.0.0": layer(Segment(3), Segment(4, first)),
        "features.0.1": layer(Segment(4), Segment(4, first)),
        "features.3.0": layer(Segment(4, first), Segment(6, second)),
        "features.3.1": layer(Segment(6), Segment(6, second)),
        "classifier.0": layer(Segment(6, second), Segment(5, hidden)),
        "classifier.3": layer(Segment(5, hidden), Segment(4)),
    }
    net, x = randomise(net.double()), images()
    for share in (0.3, 0.6, 1.0):
        set_gates(net, share)
        assert_same(net(x).detach(), compact(net)(x).detach())


def block(number: int, widths: dict[str, int]) -> tuple[Segment, ...]:
    gates = f"blocks.block{number}.gates"
    return tuple(Segment(width, f"{gates}.{branch}") for branch, width in widths.items())


def test_googlenet():
    graph = analyse(GoogleNet())
    found = layers(graph)
    assert kept(graph) == {} and len(found) == 49 + 49 + 1 and len(graph.gates) == 32
    first = block(1, {"1x1": 16, "3x3": 32, "5x5": 8, "max": 8})
    for name in ("1x1.0", "3x3.0.0", "5x5.0.0", "max.1.0"):
        assert found[f"blocks.block2.branches.{name}"].inputs == first
    last = block(8, {"1x1": 32, "3x3": 64, "5x5": 16, "max": 16})
    assert found["head.2"] == Layer(last, (Segment(10),))
    branch = "blocks.block1.branches.3x3"
    assert found[f"{branch}.0.0"] == layer(Segment(64), Segment(32))
    assert found[f"{branch}.1.0"] == layer(Segment(32), first[1])
    assert found[f"{branch}.1.1"] == layer(Segment(32), first[1])


def test_segments_of_concatenations():
    """A gate's channels keep their numbers: behind a concatenation, and when read twice."""
    net = Net(
        lambda n, x: n.head(torch.cat([g := n.gate(torch.cat([n.a(x), n.b(x)], 1)), n.c(x), g], 1)),
        **{"a": conv(3, 4), "b": conv(3, 6), "c": conv(3, 5), "gate": L0Gate(10)},
        head=nn.Conv2d(25, 4, 1),
    )
    found = layers(analyse(net))
    assert found["a.0"].outputs == (Segment(4, "gate", 0),)
    assert found["b.0"].outputs == (Segment(6, "gate", 4),)
    assert found["c.0"].outputs == (Segment(5),)
    assert found["head"].inputs == (Segment(10, "gate"), Segment(5), Segment(10, "gate"))


def test_a_channel_that_something_else_reads_stays():
    """The second convolution reads the channels of the first also without the gate."""
    net = Net(
        lambda n, x: n.head(torch.cat([n.gate(y := n.first(x)), n.second(y)], 1)),
        **{"first": conv(3, 6), "gate": L0Gate(6), "second": conv(6, 5), "head": head(11)},
    )
    graph = analyse(net)
    assert "6 of 6" in kept(graph)["gate"]
    assert layers(graph)["first.0"].outputs == (Segment(6),)
    assert layers(graph)["head.2"].inputs == (Segment(6, "gate"), Segment(5))


def test_gates_that_cannot_remove_say_why():
    before_norm = nn.Sequential(conv(3, 6), L0Gate(6), nn.BatchNorm2d(6), nn.ReLU(), head(6))
    assert list(kept(analyse(before_norm))) == ["1"]
    assert "2 makes a constant" in kept(analyse(before_norm))["1"]
    at_the_end = nn.Sequential(conv(3, 6), L0Gate(6))
    assert "output" in kept(analyse(at_the_end))["1"]


def with_parameter(n, x):
    return n.head(n.gate(n.a(x)) + n.b.bias.view(1, -1, 1, 1))


BARRIERS = {  # what forward does with two convolutions, a gate and a head
    "softmax": lambda n, x: n.head(torch.softmax(n.gate(n.a(x)), 1)),
    "power": lambda n, x: n.head(n.gate(n.a(x)) ** 2),
    "division": lambda n, x: n.head(n.gate(n.a(x)) / (n.b(x).abs() + 1)),
    "multiplied by one channel": lambda n, x: n.head(n.gate(n.a(x)) * n.c(x)),
    "number added": lambda n, x: n.head(n.gate(n.a(x)) + 1),
    "parameter": with_parameter,
    "cat over height": lambda n, x: n.head(torch.cat([n.gate(n.a(x)), n.b(x)], 2)),
    "cat over width": lambda n, x: n.head(torch.cat([n.gate(n.a(x)), n.b(x)], dim=-1)),
    "layer called twice": lambda n, x: n.head(n.gate(n.a(x) + n.a(x.flip(-1)))),
    "shared behind a gate": lambda n, x: n.head(n.d(n.gate(n.a(x))) + n.d(n.b(x))),
    "pixel shuffle": lambda n, x: n.head2(n.shuffle(n.gate(n.a(x)))),
    "flattened positions": lambda n, x: n.linear(n.gate(n.a(x)).flatten(2)).mean(1),
    "other view": lambda n, x: n.head[2](n.gate(n.a(x)).view(-1, 64, 8).mean(1)),
    "norm": lambda n, x: n.head(torch.nn.functional.normalize(n.gate(n.a(x)))),
    "attention": lambda n, x: n.attend(n, n.gate(n.a(x))),
}


def attend(n, x):
    tokens = x.flatten(2).transpose(1, 2)  # (N, positions, C)
    queries, keys, values = n.qkv(tokens).chunk(3, dim=-1)
    weights = torch.softmax(queries @ keys.transpose(-2, -1), dim=-1)
    return n.head[2]((weights @ values).mean(1))


@pytest.mark.parametrize("name", BARRIERS)
def test_what_is_not_known_is_a_barrier(name):
    """All channels before it stay, and the cut network computes the same."""
    torch.manual_seed(0)
    net = Net(
        BARRIERS[name],
        **{"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "head": head(8)},
        **{"gate": L0Gate(8), "shuffle": nn.PixelShuffle(2), "c": nn.Conv2d(3, 1, 1)},
        **{"d": nn.Conv2d(8, 8, 1), "head2": head(2), "linear": nn.Linear(64, 4)},
        qkv=nn.Linear(8, 24),
    )
    net.attend = attend
    net = randomise(net.double().eval())
    for share in (0.3, 0.6):
        set_gates(net, share)
        assert_same(net(images()).detach(), compact(net)(images()).detach())


def with_control_flow(n, x):
    return n.head(n.a(x) if x.sum() > 0 else n.b(x))


def written_into(n, x):
    y = n.a(x)
    part = y[:, :4]
    part[:, 0] = 0
    return n.head(y)


REFUSED = {  # and what the error names
    "control flow": (with_control_flow, r"control flow.*|test_channels.py line \d+"),
    "written into": (written_into, r"test_channels.py line \d+, `part\[:, 0\] = 0`"),
    "number of images": (
        lambda n, x: n.head(n.a(x).view(int(x.size(0)), 8, 8, 8)),
        "number of images",
    ),
    "two gates": (lambda n, x: n.head(n.other(n.gate(n.a(x)).relu())), "other.*gate already"),
    "gate called twice": (lambda n, x: n.head(n.gate(n.a(x)) + n.gate(n.b(x))), "gate is called"),
    "two outputs": (lambda n, x: (n.head(n.a(x)), n.b(x)), "one tensor"),
    "it does not run": (lambda n, x: n.head(n.head(x)), r"test_channels.py line \d+.*mat1"),
}


@pytest.mark.parametrize("compute, named", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_named(compute, named):
    net = Net(
        compute,
        **{"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "head": head(8)},
        **{"gate": L0Gate(8), "other": L0Gate(8)},
    )
    with pytest.raises(UserError, match=named):
        ChannelGraph(net.eval(), images().float())


def test_an_activation_may_be_called_twice():
    net = Net(
        lambda n, x: n.head(n.relu(n.b(n.gate(n.relu(n.a(x)))))),
        **{"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 6, 1), "gate": L0Gate(8), "head": head(6)},
        relu=nn.ReLU(),
    )
    assert layers(analyse(net))["a"] == layer(Segment(3), Segment(8, "gate"))
