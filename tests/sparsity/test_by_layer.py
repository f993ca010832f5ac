"""The price of the paper, and λ, targets and bounds of gates by layer."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import SHORT, assert_one_line, run_folder, summary
from networks import gates_of
from torch import nn

from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import L0Gate, gate_layers
from sparsereg.model.googlenet import GoogleNet
from sparsereg.networks import new_network
from sparsereg.sparsity.by_layer import LayerCost
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.objective import L0Penalty
from sparsereg.sparsity.size import count
from sparsereg.sparsity.target import TargetSparsity

IMAGE = (1, 28, 28)
WIDTHS = {"conv1": 20, "conv2": 50, "fc1_inputs": 800, "fc1": 500}
GROUPS = {"conv1": 25, "conv2": 500, "fc1_inputs": 500, "fc1": 10}  # of the paper's network
ALL = 430_500


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    return new_network("sparsereg", "lenet5", image_shape=IMAGE, gate_inputs="fc*")


@pytest.fixture(scope="module")
def cost(lenet) -> ExpectedCost:
    return ExpectedCost(lenet, IMAGE)


def test_the_network_of_the_paper(lenet):
    assert {name: len(gate.qz_loga) for name, gate in gate_layers(lenet).items()} == WIDTHS
    assert count(lenet, IMAGE)["params"] == 431_080


def test_groups_are_those_of_the_paper(cost):
    by_hand = [GROUPS[name] for name, width in WIDTHS.items() for _ in range(width)]
    assert cost.group_sizes.tolist() == by_hand and cost.dense["weights"] == ALL


def test_the_penalty_of_the_paper(lenet, cost):
    """(1/N) Σ over gates of P(z ≠ 0) · λ · group, with λ = [10, 0.5, 0.1, 10] by layer."""
    p = torch.rand(cost.num_gates, generator=torch.Generator().manual_seed(0))
    paper = {"conv1": 10.0, "conv2": 0.5, "fc1_inputs": 0.1, "fc1": 10.0}
    parts = dict(zip(WIDTHS, p.split([*WIDTHS.values()]), strict=True))
    by_hand = sum(paper[n] * GROUPS[n] * parts[n].sum().item() for n in WIDTHS) / 55_000
    ours = {name: weight * ALL / 55_000 for name, weight in paper.items()}
    objective = L0Penalty(lenet, IMAGE, cost="weights", lambda_l0=ours)
    penalty = (objective.weight_of_cost() * objective.costs(p)[1]).sum()
    assert penalty.item() == pytest.approx(by_hand, rel=1e-5)


def test_equal_weights_by_layer_are_one_weight(lenet, cost):
    p = torch.rand(cost.num_gates, generator=torch.Generator().manual_seed(1))
    for name in ("channels", "weights"):
        penalties = []
        for weight in (0.7, {"conv*": 0.7, "fc1*": 0.7}):
            objective = L0Penalty(lenet, IMAGE, cost=name, lambda_l0=weight)
            weighed = objective.weight_of_cost() * objective.costs(p)[1]
            penalties.append(weighed.sum().item())
        assert penalties[0] == pytest.approx(penalties[1], rel=1e-5)


def test_groups_of_other_networks():
    """A filter counts its own weights, behind BatchNorm and pooling and depthwise too."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), L0Gate(8), nn.Conv2d(8, 6, 5)),
        *(nn.Conv2d(6, 6, 3, groups=6), L0Gate(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(6, 7), nn.ReLU(), L0Gate(7), nn.Linear(7, 4)),
    )
    expected = [27.0] * 8 + [8 * 25 + 9.0] * 6 + [4.0] * 7
    assert ExpectedCost(net, (3, 16, 16)).group_sizes.tolist() == expected
    googlenet = ExpectedCost(GoogleNet(), (3, 32, 32)).group_sizes
    assert googlenet[:64].tolist() == [64.0] * 16 + [32 * 9.0] * 32 + [16 * 25.0] * 8 + [64.0] * 8


WRONG = {
    "fits nothing": ({"conv3": 1.0}, "weights", "no gate layer is named conv3.*conv1, conv2"),
    "overlap": ({"conv*": 1.0, "*2": 2.0}, "weights", r"conv2 fits conv\* and \*2"),
    "no cost of layers": ({"conv1": 1.0}, "params", "cost=channels or cost=weights.*cost=params"),
}


@pytest.mark.parametrize("by_layer, name, message", WRONG.values(), ids=WRONG)
def test_patterns_that_cannot_be_meant(lenet, by_layer, name, message):
    with pytest.raises(UserError, match=f"lambda_l0.*{message}"):
        L0Penalty(lenet, IMAGE, cost=name, lambda_l0=by_layer)
    with pytest.raises(UserError, match=f"target_sparsity.*{message}"):
        TargetSparsity(lenet, IMAGE, dict.fromkeys(by_layer, 0.5), cost=name)


def test_each_target_has_its_own_multiplier(lenet):
    targets = {"conv*": 0.5, "fc1": 0.9}
    objective = TargetSparsity(
        lenet, IMAGE, targets, cost="weights", steps=10, dual_lr=2.0, target_warmup=0
    )
    p = torch.cat([torch.full((width,), 0.25) for width in WIDTHS.values()])
    p[-500:] = 0.4
    objective.weighed = objective.costs(p)[1]
    objective.before_step()
    # the filters are below their bound 0.5: λ restarts; the hidden units are 0.3 above theirs
    assert objective.weight_of_cost().tolist() == pytest.approx([0.0, 2 * 0.3], rel=1e-5)


def test_settled_layers_have_their_targets():
    torch.manual_seed(0)
    net = new_network("sparsereg", "lenet5", image_shape=IMAGE, gate_inputs="fc1")
    targets = {"conv1": 0.5, "conv2": 0.7, "fc1_inputs": 0.3}
    objective = TargetSparsity(net, IMAGE, targets, cost="weights", steps=100)
    for gate in gates_of(net):
        gate.qz_loga.data.normal_()
    hidden = gate_layers(net)["fc1"].qz_loga.data
    hidden[:] = torch.where(torch.arange(500) < 33, 1.0, -9.0)
    objective.done = 60
    objective.settle_in_time()
    small = compact(net)
    assert objective.settled
    assert small.conv1.out_channels == 10 and small.conv2.out_channels == 15
    assert small.fc1.out_features == 33, "without a target they stay as they are"
    opened = gate_layers(net)["fc1_inputs"].qz_loga > 0
    assert int(opened.sum()) == pytest.approx(560, abs=1)


def test_features_of_closed_filters_close_first():
    torch.manual_seed(0)
    net = new_network("sparsereg", "lenet5", image_shape=IMAGE, gate_inputs="fc1")
    targets = {"conv2": 0.8, "fc1_inputs": 0.9}
    objective = TargetSparsity(net, IMAGE, targets, cost="weights", steps=100)
    for gate in gates_of(net):
        gate.qz_loga.data.normal_()
    objective.done = 60
    objective.settle_in_time()
    small = compact(net)
    assert small.conv2.out_channels == 10
    assert small.fc1.in_features == 80, "an open gate behind a closed filter would be wasted"


def test_a_target_out_of_reach_names_its_layer(lenet):
    objective = TargetSparsity(lenet, IMAGE, {"conv1": 0.96}, cost="channels")
    with pytest.raises(UserError, match=r"target_sparsity=0.96 of conv1.*highest is 0.95$"):
        objective.check_reach()


def test_bounds_of_ln_alpha(lenet):
    objective = L0Penalty(lenet, IMAGE, loga_bounds=[-1.5, 2.0], min_open_channels=0)
    [gate, *_] = gates_of(lenet)
    gate.qz_loga.data[:3] = torch.tensor([-7.0, 7.0, 0.5])
    objective.after_step()
    assert gate.qz_loga[:3].tolist() == [-1.5, 2.0, 0.5]


def test_layer_cost_is_a_share_of_the_layers_own(lenet, cost):
    layer_cost = LayerCost(lenet, cost, "weights", ["conv*"], "target_sparsity")
    p = torch.ones(cost.num_gates)
    p[:20] = 0.0
    assert layer_cost(p).tolist() == pytest.approx([25_000 / 25_500])
    p = torch.rand(cost.num_gates)
    with torch.autocast("cpu", torch.bfloat16):
        in_autocast = layer_cost(p)
    assert torch.equal(in_autocast, layer_cost(p))


RUN = (*SHORT, "model=lenet5", "cost=weights", "model.gate_inputs=[fc1]", "gate_lr=0.1")


@pytest.mark.slow
def test_a_run_with_targets_by_layer(command, tmp_path):
    targets = "target_sparsity={conv1:0.5,fc1*:0.8}"
    result = command("train.py", *RUN, targets, "loga_bounds=[-4,4]", f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    by_layer = summary(tmp_path)["target_by_layer"]
    assert {name: layer["target"] for name, layer in by_layer.items()} == {
        "conv1": 0.5,
        "fc1*": 0.8,
    }
    assert all(abs(layer["reached"] - layer["target"]) < 0.01 for layer in by_layer.values())
    header = (run_folder(tmp_path) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"lambda_l0/conv1", "lambda_l0/fc1*", "expected_sparsity/weights"} <= {*header}
    last = run_folder(tmp_path) / "checkpoints" / "last.ckpt"
    other = ("resume_training=true", "trainer.max_epochs=2", "target_sparsity={conv1:0.6}")
    refused = command("train.py", f"ckpt_path={last}", *other, f"output_dir={tmp_path}")
    assert_one_line(refused, "target_sparsity", "resumed run keeps it")


def test_a_run_with_weights_by_layer_and_its_last_epoch(command, tmp_path):
    weights = ("lambda_l0={conv*:3.0}", "callbacks.checkpoints.evaluate=last")
    result = command("train.py", *RUN, *weights, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    assert summary(tmp_path)["checkpoint"].endswith("last.ckpt")


BAD = (
    (("lambda_l0={conv1:-1}",), ["lambda_l0=", "at least 0"]),
    (("lambda_l0={}",), ["lambda_l0={}", "at least 0"]),
    (("target_sparsity={conv1:2}",), ["target_sparsity=", "above 0 and below 1"]),
    (("loga_bounds=[2,1]",), ["loga_bounds=[2, 1]", "low < high"]),
    (("callbacks.checkpoints.evaluate=first",), ["evaluate=first", "best or last"]),
    (("model.gate_inputs=[conv1]",), ["gate_inputs", "no linear layer is named conv1", "fc2"]),
    (("data=mnist", "data.root="), ["data.root="]),
)


@pytest.mark.parametrize("settings, words", BAD)
def test_settings_that_cannot_be_meant(command, tmp_path, settings, words):
    arguments = ("data=digits", "model=lenet5", "trainer=cpu", *settings)
    result = command("train.py", *arguments, f"output_dir={tmp_path / 'out'}")
    assert_one_line(result, *words)
    assert not (tmp_path / "out").exists()


def test_the_bounds_of_the_paper_in_its_experiment(command):
    from hydra import compose, initialize_config_dir

    from sparsereg.commands.command_line import CONFIG

    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose("train", overrides=["experiment=lenet5_paper_layers"])
    assert cfg.loga_bounds == pytest.approx([math.log(0.01), math.log(100)])
    paper = SimpleNamespace(conv1=10, conv2=0.5, fc1_inputs=0.1, fc1=10)
    for name, weight in cfg.lambda_l0.items():
        assert weight == pytest.approx(getattr(paper, name) * ALL / 55_000, rel=1e-4)
