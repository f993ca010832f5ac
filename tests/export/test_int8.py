"""compact.py int8=true: small, as accurate, and it says where it is not."""

import json
import logging
import shutil
import sys
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from conftest import SMALL, assert_one_line, checkpoint_path, run_here
from torch import nn

from sparsereg.budgets.paired import batches
from sparsereg.data.digits import Digits
from sparsereg.export import int8
from sparsereg.export import report as compact_report
from sparsereg.export.formats import export, open_onnx

PRODUCTS_OF_FLOATS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
FEW = {1: 1, 2: 1}  # batches, rounds of measuring


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.setup()
    return data


@pytest.fixture(scope="module")
def gated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    assert run_here("train.py", *SMALL, f"output_dir={folder}") == 0
    return checkpoint_path(folder)


@pytest.mark.slow
def test_the_command_writes_and_compares_it(command, tmp_path, monkeypatch, digits):
    monkeypatch.setattr(compact_report, "BATCHES", FEW)
    monkeypatch.setattr(int8, "ROUNDS", FEW)
    length = ("trainer.limit_train_batches=39", "trainer.max_epochs=3", "optimizer.lr=3e-3")
    more = (*length, "without_using_gate=true", f"output_dir={tmp_path}")
    assert command("train.py", *SMALL, *more).code == 0
    level = logging.getLogger().level
    result = command("compact.py", f"ckpt_path={checkpoint_path(tmp_path)}", "int8=true")
    assert result.code == 0 and "warning" not in result.err, result.err
    assert logging.getLogger().level == level
    folder = checkpoint_path(tmp_path).with_name("last_compact")
    rows = json.loads((folder / "report.json").read_text())["int8"]["files"]
    full, small = rows["compact.onnx"], rows["compact.int8.onnx"]
    assert small["bytes"] == (folder / "compact.int8.onnx").stat().st_size < full["bytes"] / 3.4
    for split in ("val", "test"):
        images, labels = next(batches(digits, split))
        logits = open_onnx(folder / "compact.int8.onnx")(images)
        right = (logits.argmax(dim=1) == labels).float().mean().item()
        assert small[f"{split}_acc"] == pytest.approx(right)
        assert full[f"{split}_acc"] > 0.8
        assert right >= full[f"{split}_acc"] - 0.01
    model = onnx.load(folder / "compact.int8.onnx")
    onnx.checker.check_model(model)
    weights = {w.name: w for w in model.graph.initializer}
    scaled = [n.input for n in model.graph.node if n.op_type == "DequantizeLinear"]
    large = [(weights[name], weights[scale]) for name, scale, _ in scaled if name in weights]
    large = [(weight, scale) for weight, scale in large if len(weight.dims) > 1]
    assert len(large) == 4, "two convolutions, two products"
    for weight, scale in large:
        assert weight.data_type == onnx.TensorProto.INT8
        assert scale.dims[0] in (weight.dims[0], weight.dims[1]) and scale.dims[0] > 1
    assert f"{small['test_acc']:.2%}" in result.out
    kinds = computed(folder / "compact.int8.onnx", tmp_path)
    assert kinds["QLinearConv"] == kinds["QGemm"] == 2
    assert kinds.keys().isdisjoint(PRODUCTS_OF_FLOATS)


def computed(file: Path, folder: Path) -> Counter:
    """The operations that onnxruntime makes of a file, by name."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this processor
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)


class Outlier(nn.Sequential):
    """A channel that is always large, and hardly read, spoils the range between the first two."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU()
        self.second, self.flat = nn.Conv2d(8, 8, 3, stride=4), nn.Flatten()
        self.third = nn.Linear(8 * 9, 10)
        with torch.no_grad():
            self.first.bias[0] = 2000
            self.second.weight[:, 0] *= 1e-5


@pytest.mark.slow
def test_that_of_an_earlier_cut_is_removed(command, gated, monkeypatch):
    """Without int8=true the report does not tell of it."""
    monkeypatch.setattr(compact_report, "BATCHES", FEW)
    stale = gated.with_name("last_compact") / "compact.int8.onnx"
    stale.parent.mkdir(exist_ok=True)
    stale.write_text("of other weights")
    result = command("compact.py", f"ckpt_path={gated}")
    assert result.code == 0 and not stale.exists(), result.err
    assert f"removed {stale}" in result.out


def test_a_drop_is_a_warning_that_names_the_worst_layer(tmp_path, digits, capsys, monkeypatch):
    monkeypatch.setattr(int8, "ROUNDS", FEW)
    net = Outlier().eval()
    for split in ("val", "test"):  # what it says is right, until it is quantized
        images, _ = next(batches(digits, split))
        part = getattr(digits.splits, split)
        with torch.no_grad():
            monkeypatch.setattr(digits.splits, split, part._replace(labels=net(images).argmax(1)))
    export(net, (3, 16, 16), tmp_path)
    results = int8.write_int8(tmp_path / "compact.onnx", digits, flip_tta=False)
    assert results["files"]["compact.onnx"]["test_acc"] == 1
    errors = results["largest_errors"]
    assert {*errors} == {"first", "second", "third"} and errors["third"] < errors["second"] / 10
    int8.print_files(results)
    warning = capsys.readouterr().err
    lost = 100 * (1 - results["files"]["compact.int8.onnx"]["test_acc"])
    assert f"{lost:.1f} points of test accuracy" in warning and "second (" in warning


def test_ranges_are_those_of_training_images(digits, monkeypatch):
    images = int8.training_images(digits)
    train = digits.on_after_batch_transfer(digits.splits.train)[0].flatten(1)
    same = (images.flatten(1)[:8, None] == train).all(dim=2)
    assert len(images) == 512 and same.any(dim=1).all()


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("compact.py", ("ckpt_path={gated}", "data.batch_size=9"), ["data.batch_size", "int8"]),
        ("compact.py", ("ckpt_path={gated}", "int8=1"), ["int8=1", "true or false"]),
        ("train.py", ("int8=true",), ["int8=true", "compact.py"]),
        ("compact.py", ("ckpt_path={gated}", "int8=true", "normalise=inside"), ["inside"]),
    ],
)
def test_mistakes(command, gated, tmp_path, arguments, script, words):
    path = shutil.copy(gated, tmp_path)
    result = command(script, *(argument.format(gated=path) for argument in arguments))
    assert_one_line(result, *words)
    assert not Path(tmp_path, "last_compact").exists()


def test_data_of_another_shape(command, gated, tmp_path):
    checkpoint = torch.load(gated, weights_only=True)
    for part in ("data", "network"):
        checkpoint["sparsereg"][part]["image_shape"] = [3, 32, 32]
    torch.save(checkpoint, tmp_path / "best.ckpt")
    result = command("compact.py", f"ckpt_path={tmp_path / 'best.ckpt'}", "int8=true")
    assert_one_line(result, "(3, 16, 16)", "(3, 32, 32)", "data=")


def test_without_onnxruntime(command, gated, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = command("compact.py", f"ckpt_path={gated}", "int8=true")
    assert_one_line(result, "int8=true needs", "requirements-export.txt")
