"""Where gates are put, and that the network stays what it was."""

import pytest
import torch
from networks import (
    CLOSED,
    OPEN,
    Net,
    assert_same,
    conv,
    head,
    images,
    parameters,
    randomise,
)
from torch import nn
from torch.nn import functional as F

import sparsereg
from sparsereg.compact import compact, fold
from sparsereg.errors import UserError
from sparsereg.graph.tracing import trace
from sparsereg.model import gated as gated_module
from sparsereg.model.basic_l0_blocks import GATES, L0Gate, draw_gates, gate_layers
from sparsereg.model.googlenet import REDUCE, GoogleNet
from sparsereg.surgery.compaction import cut_closed
from sparsereg.surgery.insert import insert_gates, place_gates


def depthwise(channels: int) -> nn.Sequential:
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.SiLU())


def mobile_block(**others) -> Net:
    """Expand, depthwise convolution, squeeze-excitation, project; beside a shortcut."""

    def compute(n, x):
        s = n.stem(x)
        y = n.depthwise(n.expand(s))
        y = y * torch.sigmoid(n.excite(F.relu(n.squeeze(y.mean((2, 3), keepdim=True)))))
        return n.head(s + n.project(y))

    return Net(
        compute,
        **{"stem": conv(3, 8), "expand": conv(8, 12, 1), "depthwise": depthwise(12)},
        **{"squeeze": nn.Conv2d(12, 4, 1), "excite": nn.Conv2d(4, 12, 1)},
        **{"project": nn.Conv2d(12, 8, 1), "head": head(8), **others},
    )


def reader_of(net: nn.Module, layer: str) -> str:
    """What comes before the gate of a layer in the graph that the network runs."""
    [gate] = trace(net.eval()).graph.find_nodes(op="call_module", target=f"{GATES}.{layer}")
    return gate.args[0].target


def test_the_gate_of_expanded_channels_is_behind_the_depthwise_activation():
    net, places = place_gates(mobile_block())
    assert list(gate_layers(net)) == ["expand.0", "squeeze"]
    assert reader_of(net, "expand.0") == "depthwise.2"
    why = {place.layer: place.why_not for place in places}
    assert why["excite"] == "goes with the channels of expand.0"
    assert "add" in why["project"] and "add" in why["stem.0"] and "output" in why["head.2"]
    gate_layers(net)["expand.0"].qz_loga.data[1:] = CLOSED
    gate_layers(net)["squeeze"].qz_loga.data.fill_(OPEN)
    small = compact(net)
    widths = {"expand.0": 1, "depthwise.0": 1, "squeeze": 4, "excite": 1, "project": 8}
    assert {n: len(small.get_submodule(n).weight) for n in widths} == widths
    assert small.get_submodule("project").in_channels == 1


def test_three_lines():
    net = mobile_block().double()
    gated = sparsereg.insert_gates(net, images(), droprate_init=0.05, show=False)
    assert all(torch.sigmoid(g.qz_loga).mean() > 0.9 for g in gate_layers(gated).values())
    gates = {f"gates.{name}.qz_loga" for name in ("expand.0", "squeeze", "stem.0")}
    assert gated.state_dict().keys() == net.state_dict().keys() | gates
    assert not any(key.startswith(GATES) for key in net.state_dict()), "the original is left alone"
    found = gated.load_state_dict(net.state_dict(), strict=False)
    assert set(found.missing_keys) == gates and not found.unexpected_keys


def test_the_table_says_what_and_why(capsys):
    insert_gates(mobile_block(), images().float(), coupled=False)
    out = capsys.readouterr().out
    for words in (("expand.0", "12"), ("project", "it is added"), ("all", "16"), ("can go",)):
        assert any(all(word in line for word in words) for line in out.splitlines()), words


def test_open_gates_change_nothing_and_closed_ones_remove():
    torch.manual_seed(0)
    net = randomise(mobile_block().double().eval())
    gated = insert_gates(net, images(), show=False)
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.fill_(OPEN)
    assert torch.equal(gated(images()), net(images()))
    gate_layers(gated)["squeeze"].qz_loga.data.fill_(CLOSED)
    small = compact(gated)
    assert_same(gated(images()).detach(), small(images()).detach())
    assert_same(gated(images()).detach(), fold(small)(images()).detach())
    assert parameters(small) < parameters(net) - 12 * 4, "the excitation has become a constant"


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_an_ungated_googlenet_takes_gates(training):
    """Although it normalises its branches in one in training, which is no other network."""
    net = GoogleNet(without_using_gate=True).train(training)
    gated = insert_gates(net, torch.zeros(1, 3, 32, 32))
    assert len(gated.qz_loga()) == 64 + 832 + sum(map(sum, REDUCE))


def test_all_gates_are_drawn_at_once(monkeypatch):
    calls = []

    def draw(qz_loga, num_masks, temperature):
        calls.append((len(qz_loga), num_masks))
        return draw_gates(qz_loga, num_masks, temperature)

    monkeypatch.setattr(gated_module, "draw_gates", draw)
    monkeypatch.setattr("sparsereg.model.basic_l0_blocks.draw_gates", None)  # no gate on its own
    net, _ = place_gates(mobile_block().train())
    net(images().float()).sum().backward()
    assert calls == [(16, 4)]
    assert all(gate.qz_loga.grad.abs().sum() > 0 for gate in gate_layers(net).values())
    net.eval()(images().float())
    assert len(calls) == 1


def test_each_gate_has_its_own_part_of_the_sample():
    net, _ = place_gates(mobile_block().train(), sampling="per_batch")
    names, seen = list(gate_layers(net)), {}
    for name, gate in gate_layers(net).items():
        gate.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y / x[0]}))
    torch.manual_seed(1)
    net(images().float())
    torch.manual_seed(1)
    expected = dict(zip(names, draw_gates(net.qz_loga(), 1).split([12, 4], dim=1), strict=True))
    for name, ratio in seen.items():
        z = expected[name].view(1, -1, 1, 1).expand_as(ratio)
        assert torch.allclose(ratio[ratio.isfinite()], z[ratio.isfinite()], atol=1e-4), name


def test_include_and_exclude():
    net, _ = place_gates(mobile_block(), include="e*")
    assert list(gate_layers(net)) == ["expand.0"]
    net, places = place_gates(mobile_block(), exclude=["squeeze"])
    assert list(gate_layers(net)) == ["expand.0"]
    assert {p.layer: p.why_not for p in places}["squeeze"] == "excluded"
    with pytest.raises(UserError, match="no layer is named sqeeze"):
        place_gates(mobile_block(), exclude="sqeeze")
    with pytest.raises(UserError, match="no channels that can be removed"):
        place_gates(mobile_block(), include="project")


def test_dropout_functions_follow_the_mode():
    net = Net(
        lambda n, x: n.head(F.dropout(n.a(x), 0.5, n.training)),
        **{"a": conv(3, 8), "head": head(8)},
    )
    gated, _ = place_gates(net)
    gate_layers(gated)["a.0"].qz_loga.data.fill_(OPEN)
    x = images().float()
    assert torch.equal(gated.eval()(x), net.eval()(x))
    first, second = gated.train()(x), gated(x)
    assert not torch.equal(first, second)


def only_in_training(n, x):
    y = n.a(x)
    return n.head(F.relu(y) if n.training else y)


def control_flow(n, x):
    y = n.a(x)
    if y.sum() > 0:
        y = y + 1
    return n.head(y)


REFUSED = {
    "another graph in training": (
        only_in_training,
        r"in training.*relu.*test_insert.py line \d+.*of its own",
    ),
    "number of images": (
        lambda n, x: n.head(n.a(x) / float(x.size(0))),
        r"test_insert.py line \d+.*number of images",
    ),
    "control flow": (control_flow, r"test_insert.py line \d+, `if y.sum\(\) > 0:`"),
    "nothing to remove": (lambda n, x: n.head(n.a(x).cumsum(1)), "cumsum reads all of them"),
    "a table": (lambda n, x: {"logits": n.head(n.a(x))}, "must give one tensor, its logits"),
    "gates already": (lambda n, x: n.head(n.gate(n.a(x))), "has gates already"),
}


@pytest.mark.parametrize("compute, named", REFUSED.values(), ids=REFUSED)
def test_what_stops_it_is_named_with_its_line(compute, named):
    layers = {"a": conv(3, 8), "head": head(8)}
    if "gates already" in named:
        layers["gate"] = L0Gate(8)
    with pytest.raises(UserError, match=named):
        place_gates(Net(compute, **layers))


def test_a_head_that_starts_at_zero():
    """As that of vision transformers: all logits are zero, and so they are when cut."""
    net = mobile_block()
    for parameter in [*net.modules()][-1].parameters():
        nn.init.zeros_(parameter)
    assert not net(images(8).float()).any()
    gated = insert_gates(net, images(8).float(), show=False)
    assert not compact(gated)(images(8).float()).any()


@pytest.mark.parametrize("starts_at_zero", [False, True])
def test_a_wrong_cut_is_found_at_once(monkeypatch, starts_at_zero):
    def wrong(plain: nn.Module) -> nn.Module:
        small = cut_closed(plain)
        [first, *_] = (m for m in small.modules() if isinstance(m, nn.Conv2d))
        first.weight.data[0] *= 1.01
        return small

    monkeypatch.setattr("sparsereg.surgery.verify.cut_closed", wrong)
    net = mobile_block()
    for parameter in [*net.modules()][-1].parameters() if starts_at_zero else []:
        nn.init.zeros_(parameter)  # no logit shows anything
    with pytest.raises(UserError, match=r"Net, cut, differs by .* please report"):
        insert_gates(net, images().float(), show=False)
    assert starts_at_zero != net(images().float()).any(), "the network itself is as it was"


def test_a_network_that_gives_no_logits():
    net = Net(lambda n, x: n.b(n.a(x)), a=conv(3, 8), b=conv(8, 4))
    with pytest.raises(UserError, match="must give logits"):
        insert_gates(net, images().float(), show=False)


def shuffled(n, x):
    """A channel shuffle as most people write it, and the halves taken apart again."""
    y = torch.cat([n.a(x), n.b(x)], 1)
    size, channels, height, width = y.size()
    y = y.view(size, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    first, second = y.view(size, channels, height, width).chunk(2, dim=1)
    return n.head(torch.cat([n.c(second), first], 1))


def sliced(n, x):
    y = torch.cat([n.a(x), n.b(x)], 1)
    return n.head(torch.cat([n.c(y[:, 4:12]), y[:, 3:]], 1))


SELECTIONS = {
    "shuffle and chunk": shuffled,
    "module": lambda n, x: n.head(torch.cat([n.c(n.shuffle(n.a(x))), n.b(x)], 1)),
    "slices": sliced,
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_channels_in_another_order(name):
    torch.manual_seed(0)
    widths = {"shuffle and chunk": 14, "module": 14, "slices": 19}
    net = Net(
        SELECTIONS[name],
        **{"a": conv(3, 8), "b": conv(3, 8), "c": conv(8, 6)},
        **{"shuffle": nn.ChannelShuffle(4), "head": head(widths[name])},
    )
    gated, places = place_gates(randomise(net.double().eval()))
    assert {"c.0", "b.0"} <= set(gate_layers(gated)), places
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.copy_(torch.where(torch.rand(len(gate.qz_loga)) < 0.5, 1.0, CLOSED))
        gate.qz_loga.data[0] = 0.5
    small = compact(gated)
    assert_same(gated(images()).detach(), small(images()).detach())
    assert_same(gated(images()).detach(), fold(small)(images()).detach())
    assert parameters(small) < parameters(net)
