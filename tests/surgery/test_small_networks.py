"""Cutting, folding and storing keep the outputs of networks that are built unlike GoogleNet."""

import pytest
import torch
from networks import assert_same, images, parameters, set_gates
from small_networks import NETWORKS, make

from sparsereg.compact import compact, fold
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.readers import kept
from sparsereg.surgery.plain_graph import build, describe


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_the_same(name):
    net, x = make(NETWORKS[name]), images()
    for seed, share in enumerate((0.2, 0.5, 1.0)):
        torch.manual_seed(seed)  # building networks draws random numbers too
        set_gates(net, share)
        with torch.no_grad():
            expected, cut = net(x), compact(net)
            assert_same(expected, cut(x))
            assert_same(expected, fold(cut)(x))
            rebuilt = build(describe(cut)).eval().double()
            rebuilt.load_state_dict(cut.state_dict())
            assert torch.equal(rebuilt(x), cut(x))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "BatchNorm between gates"])
def test_channels_go_where_the_analysis_says_so(name):
    """A gate removes channels unless all of them are `kept`."""
    net = make(NETWORKS[name])
    graph = ChannelGraph(net)
    keeps = kept(graph)
    set_gates(net, 1.0)
    dense = parameters(compact(net))
    for gate, qz_loga in ((gate, net.get_submodule(gate).qz_loga.data) for gate in graph.gates):
        qz_loga[1:] -= 20
        width = len(qz_loga)
        all_kept = keeps.get(gate, "").startswith(f"{width} of {width}")
        assert (parameters(compact(net)) < dense) != all_kept, gate
        qz_loga[1:] += 20
