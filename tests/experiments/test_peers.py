"""experiments/peers.py cuts a dense network to the size asked for, into a file to train on."""

import pytest
import torch
from conftest import SHORT

import sparsereg
from experiments import peers
from sparsereg.sparsity.size import count

SHAPE = (3, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, cost, sparsity",
    [("random", "params", 0.9), ("random", "macs", 0.9), ("magnitude", "params", 0.25)],
)
def test_the_size_asked_for(command, dense, tmp_path, method, cost, sparsity):
    if method == "magnitude":
        pytest.importorskip("torch_pruning")
    file = tmp_path / method / "compact.pt"
    arguments = (method, str(dense), str(sparsity), "--cost", cost, "--out", str(file))
    assert peers.main(arguments) == 0
    net, size = sparsereg.load(file), count(sparsereg.load(dense), SHAPE)
    left = (1 - sparsity) * size[cost]
    assert count(net, SHAPE)[cost] == pytest.approx(left, abs=0.005 * size[cost])
    assert net.meta["dense"] == size
    on = (
        "without_using_gate=true",
        "recipe=modern",
        "scheduler=multistep",
        f"output_dir={tmp_path}",
    )
    result = command("train.py", f"ckpt_path={file}", *SHORT, *on, f"loss.teacher={file}")
    assert result.code == 0, result.err


def test_the_weakest_channels_go(trained, tmp_path):
    """The channels of one layer are made tiny, with what reads them: they go first."""
    pytest.importorskip("torch_pruning")
    net = sparsereg.load(trained["ungated"])
    weak = net.blocks["block4"].branches["3x3"][0]  # the reduction before a 3x3 convolution
    with torch.no_grad():
        for tensor in (weak[0].weight, weak[1].weight):
            tensor[:16] *= 1e-4
        net.blocks["block4"].branches["3x3"][1][0].weight[:, :16] *= 1e-4
    small = peers.by_magnitude(net, "params", 0.04, SHAPE)  # they are 0.033
    left = small.get_submodule("blocks.block4.branches.3x3.0.0").weight
    assert 0 < len(left) <= 16 and left.flatten(1).norm(dim=1).min() > 0.01


@pytest.mark.slow
def test_each_seed_has_its_own_choice(dense):
    checkpoint = sparsereg.checkpoint.read_checkpoint(dense)
    nets = [peers.at_random(checkpoint, "params", 0.5, SHAPE, seed) for seed in (1, 1, 2)]
    first, again, other = ([p.shape for p in net.parameters()] for net in nets)
    assert first == again != other


def test_a_size_that_cannot_be_reached(dense, tmp_path, capsys):
    file = tmp_path / "compact.pt"
    arguments = ("random", str(dense), "0.999", "--cost", "macs", "--out", str(file))
    assert peers.main(arguments) == 1
    assert "0.999 of the macs was missed" in capsys.readouterr().err
    assert not file.exists()
