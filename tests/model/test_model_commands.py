"""All commands work on any network that `model=` names."""

import json

import pytest
import torch
import torchvision
from conftest import SHORT, assert_one_line, checkpoint_path, run_folder, summary

import sparsereg
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.networks import load_pretrained, new_network, plain_network

OTHER_MODELS = [
    (["model=resnet8"], ["model=resnet8", "did you mean 'resnet18'?"]),
    (["model=torchvision"], ["model.name=null", "the name of a network"]),
    (
        ["model=torchvision", "model.name=resnet5"],
        ["model.name=resnet5", "did you mean 'resnet50'"],
    ),
    (["model=lenet5", "model.name=lenet"], ["model.name=lenet", "did you mean 'lenet5'?"]),
    (["model=lenet5", "model.pretained=x"], ["model.pretained", "mean 'model.pretrained'?"]),
    (["model=lenet5", "model.library=keras"], ["model.library=keras", "torchvision, timm"]),
    (["model=lenet5", "model.pretrained=nowhere.pt"], ["model.pretrained=nowhere.pt"]),
    (["model=lenet5", "model.include=[3]"], ["model.include=[3]", "names of layers"]),
    (["model=lenet5", "model.exclude=[features*]"], ["no layer is named features*"]),
    (["model=lenet5", "gate_reductions=true"], ["gate_reductions=true", "model.include"]),
    (["model=vgg16_bn"], ["cannot take images of 16x16"]),
]


@pytest.mark.slow
@pytest.mark.parametrize("change, words", OTHER_MODELS, ids=[" ".join(c) for c, _ in OTHER_MODELS])
def test_a_wrong_model_is_one_line(change, words, command, tmp_path):
    result = command("train.py", *SHORT, *change, f"output_dir={tmp_path / 'out'}")
    assert_one_line(result, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_training_to_onnx(command, tmp_path):
    target = ("target_sparsity=0.4", "cost=params", "droprate_init=0.05")
    arguments = (*SHORT, "model=lenet5", "model.exclude=[conv1]", f"output_dir={tmp_path}")
    assert command("train.py", *arguments, *target).code == 0
    results = summary(tmp_path)
    assert results["reached_sparsity"] == pytest.approx(0.4, abs=0.01)
    assert list(results["open_channels"]) == ["conv2", "fc1"]
    header = (run_folder(tmp_path) / "metrics.csv").read_text().splitlines()[0]
    assert {"L_C0", "open_channels/conv2", "open_channels/fc1", "sparsity"} <= set(
        header.split(",")
    )

    last = checkpoint_path(tmp_path)
    resume = ("resume_training=true", "trainer.max_epochs=2", f"output_dir={tmp_path}")
    assert command("train.py", f"ckpt_path={last}", *resume).code == 0
    assert summary(tmp_path, 1)["sparsity"] == pytest.approx(results["sparsity"])

    assert command("compact.py", f"ckpt_path={last}").code == 0
    folder = last.with_name("last_compact")
    report = json.loads((folder / "report.json").read_text())
    assert report["variants"]["compact"]["params"] == results["params"]
    assert report["not_removable"] == {}
    images = torch.randn(3, 3, 16, 16)
    small = sparsereg.load(folder / "compact.pt")
    assert torch.allclose(small(images), sparsereg.load(last)(images), atol=1e-5)


@pytest.mark.slow
def test_weights_and_gates_from_an_ungated_run(command, tmp_path):
    run = (*SHORT, "model=lenet5", f"output_dir={tmp_path}")
    assert command("train.py", *run, "without_using_gate=true").code == 0
    dense = checkpoint_path(tmp_path)
    assert not any("qz_loga" in key for key in torch.load(dense, weights_only=True)["state_dict"])
    assert command("train.py", *run, f"ckpt_path={dense}", "droprate_init=0.05").code == 0
    gates = gate_layers(sparsereg.load(checkpoint_path(tmp_path, 1))).values()
    assert len(gates) == 3 and all(gate.qz_loga.min() > 2 for gate in gates)


@pytest.mark.slow
def test_torchvision_with_weights_from_a_file(command, tmp_path):
    """Of ImageNet's classifier only the last layer is not taken."""
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v3_small(num_classes=7).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(theirs, path)
    result = command(
        "train.py",
        *SHORT,
        *("model=torchvision", "model.name=mobilenet_v3_small", f"model.pretrained={path}"),
        *("data.batch_size=16", "optimizer.lr=1e-9", f"output_dir={tmp_path}"),
    )
    assert result.code == 0, result.err
    path.unlink()  # the checkpoint needs it no more
    net = sparsereg.load(checkpoint_path(tmp_path))
    key, own = "features.0.0.weight", net.state_dict()
    assert torch.allclose(own[key], theirs[key], atol=1e-6)
    assert own["classifier.3.weight"].shape == (10, 1024)


def test_weights_that_do_not_fit(tmp_path):
    net = new_network("sparsereg", "lenet5", without_using_gate=True)
    state, path = net.state_dict(), tmp_path / "weights.pt"
    wrong = {
        "lacks 0.bias": {k: t for k, t in state.items() if k != "0.bias"},
        "adds extra": state | {"extra": torch.zeros(1)},
        "0.weight has another shape": state | {"0.weight": torch.zeros(3)},
        "no state dict": [1, 2],
    }
    for message, content in wrong.items():
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            load_pretrained(net, str(path), 10)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="no file of plain weights"):
        load_pretrained(net, str(path), 10)


def test_timm(command, tmp_path):
    net = new_network("timm", "resnet10t", num_classes=5)
    assert net.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(UserError, match="no network of timm"):
        new_network("timm", "hf_hub:someone/something")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {k: t * 0 for k, t in state.items()}, "state_dict_ema": state},
        lambda state: {
            "model_ema": {"n_averaged": torch.tensor(2)}
            | {f"module.{key}": tensor for key, tensor in state.items()}
        },
    ],
    ids=["parallel", "parts", "timm's mean", "torchvision's mean"],
)
def test_weights_in_other_wrappings(wrap, tmp_path):
    net, other = (plain_network("sparsereg", "resnet20", 10) for _ in range(2))
    torch.save(wrap(net.state_dict()), tmp_path / "weights.pt")
    load_pretrained(other, str(tmp_path / "weights.pt"), 10)
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))


NEWER = {"resnet20": ("coupled", "behind_barriers"), "googlenet": ("gate_stem",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEWER)
def test_a_checkpoint_from_before_some_gates_goes_on(name, command, tmp_path):
    without = [f"model.{key}=false" for key in NEWER[name]]
    run = (*SHORT, f"model={name}", *without, f"output_dir={tmp_path}")
    assert command("train.py", *run).code == 0
    last = checkpoint_path(tmp_path)
    checkpoint = torch.load(last, weights_only=True)
    for part in ("network", "config"):
        described = checkpoint["sparsereg"][part]
        model = described if part == "network" else described["model"]
        for key in NEWER[name]:
            del model[key]
    torch.save(checkpoint, last)

    before = sparsereg.load(last)
    resume = ("resume_training=true", "trainer.max_epochs=2", f"output_dir={tmp_path}")
    said = command("train.py", f"ckpt_path={last}", *resume)
    assert said.code == 0, said.err
    after = sparsereg.load(checkpoint_path(tmp_path, 1))
    assert gate_layers(after).keys() == gate_layers(before).keys()


@pytest.mark.slow
def test_a_cut_network_that_pads_its_channels_trains_on(command, tmp_path):
    """Where layer2 begins, 16 channels become 32 by zeros before and behind."""
    settings = ("model=resnet20", "model.exclude=[layer1.*]", "finetune_epochs=1")
    result = command("train.py", *SHORT, *settings, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    assert sparsereg.load(checkpoint_path(tmp_path, 1)).select_pad_getitem.zeros
