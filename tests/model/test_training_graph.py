"""A cut network is trained by fewer operations, which compute the same."""

import copy

import pytest
import torch
from networks import conv, googlenet, head, images, set_gates
from torch import nn

from sparsereg.compact import compact
from sparsereg.model.layers import BatchNorm
from sparsereg.model.small_images import NETWORKS
from sparsereg.model.training_graph import Normalised, training_graph
from sparsereg.surgery.insert import place_gates


def cut_googlenet() -> nn.Module:
    return compact(googlenet())


def cut_resnet() -> nn.Module:
    net, _ = place_gates(NETWORKS["resnet20"](10), coupled=True)
    set_gates(net, 0.5)
    return compact(net.double())


def cut_chain() -> nn.Module:
    """Its second norm is read by two, a third activation is none of ReLU's."""
    net = nn.Sequential(conv(3, 6, act=nn.ReLU), conv(6, 6), head(6))
    for block in net[:2]:
        block[1] = BatchNorm(6)
    return compact(place_gates(net.double())[0])


def learn(net: nn.Module, forward) -> dict[str, torch.Tensor]:
    """What one step leaves: the logits, gradients and statistics."""
    net.train()
    logits = forward(images(16))
    logits.logsumexp(dim=1).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    return {"logits": logits.detach()} | gradients | dict(net.named_buffers())


@pytest.mark.parametrize("make", [cut_googlenet, cut_resnet, cut_chain])
def test_it_learns_the_same(make):
    net = make()
    other = copy.deepcopy(net)
    expected, found = learn(net, net), learn(other, training_graph(other))
    assert expected.keys() == found.keys(), "the layers keep their names"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_a_block_of_googlenet_is_one_operation():
    fused = training_graph(cut_googlenet())
    norms = [m for m in fused.modules() if isinstance(m, Normalised)]
    assert max(len(norm.norms) for norm in norms) == 4, "branches"
    left = [n for n in fused.graph.nodes if n.op == "call_module" and n.target.endswith(".1")]
    assert not any(type(fused.get_submodule(n.target)) is BatchNorm for n in left)


def test_a_norm_that_others_read_too_stays():
    net = cut_chain()
    [relu] = [n for n in net.graph.nodes if n.op == "call_module" and n.target == "0.2"]
    with net.graph.inserting_after(relu):
        total = net.graph.call_function(torch.add, (relu, relu.args[0]))
    relu.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    net.recompile()
    assert not any(isinstance(m, Normalised) for m in training_graph(net).modules())


def test_a_network_that_was_not_cut_is_trained_as_it_is():
    net = googlenet()
    assert training_graph(net) is net
