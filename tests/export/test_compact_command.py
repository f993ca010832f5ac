"""compact.py, and what train.py and test.py do with the network it cuts."""

import contextlib
import io
import json
import shutil
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import SHORT, SMALL, assert_one_line, checkpoint_path, close_gates, run_here

import sparsereg
from benchmarks import compact as benchmark
from sparsereg.checkpoint import read_checkpoint
from sparsereg.compact import compact, load_compact
from sparsereg.errors import UserError
from sparsereg.export import report as compact_report
from sparsereg.sparsity.size import measure

FILES = {"compact.pt", "compact.pt2", "compact.onnx", "deploy.json", "report.json"}
IMAGE = (3, 16, 16)


@pytest.fixture
def quick(monkeypatch):
    """Latency is measured once, for small batches."""
    monkeypatch.setattr(compact_report, "BATCHES", {1: 1, 2: 1})


@pytest.fixture
def small(lenet5, tmp_path) -> Path:
    """Checkpoint of a network of three gated layers, half of whose channels are closed."""
    return close_gates(lenet5, tmp_path / "best.ckpt")


def copy_of(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copy(checkpoint, folder / checkpoint.name))


@pytest.fixture(scope="module")
def folder(pruned) -> Path:
    """What the command writes for the pruned checkpoint."""
    out, once = io.StringIO(), patch.object(compact_report, "BATCHES", {1: 1, 128: 1})
    with once, contextlib.redirect_stdout(out), warnings.catch_warnings(action="error"):
        assert run_here("compact.py", f"ckpt_path={pruned}") == 0
    assert "dense folded" in out.getvalue() and "block8" in out.getvalue()
    return pruned.parent / "best_compact"


@pytest.mark.slow
def test_every_file_computes_what_the_masked_network_computes(folder, pruned):
    net = sparsereg.load(pruned)
    session = onnxruntime.InferenceSession(folder / "compact.onnx")
    forms = {
        "load_compact": load_compact(folder / "compact.pt"),
        "load": sparsereg.load(folder / "compact.pt"),
        "pt2": torch.export.load(folder / "compact.pt2").module(),
        "onnx": lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]),
    }
    assert {path.name for path in folder.iterdir()} == FILES
    for batch in (1, 2, 7):
        images = torch.randn(batch, *IMAGE)
        with torch.no_grad():
            logits = net(images)
            for name, form in forms.items():
                error = (form(images) - logits).abs().max() / logits.abs().max()
                assert error <= 1e-4, (name, batch)


@pytest.mark.slow
def test_files_are_of_the_cut_size(folder, pruned):
    size = measure(sparsereg.load(pruned), IMAGE)
    assert 0.2 < size["sparsity"] < 0.9
    assert not any(
        "block3.branches.5x5" in name for name in load_compact(folder / "compact.pt").state_dict()
    )
    weights = onnx.load(folder / "compact.onnx").graph.initializer
    in_onnx = sum(int(np.prod(w.dims)) for w in weights if w.data_type == onnx.TensorProto.FLOAT)
    assert in_onnx < size["params"]  # BatchNorm is folded
    exported = torch.export.load(folder / "compact.pt2").state_dict
    assert sum(tensor.numel() for tensor in exported.values()) < size["params"]
    torch.load(folder / "compact.pt", weights_only=True)


@pytest.mark.slow
def test_report(folder, pruned):
    report = json.loads((folder / "report.json").read_text())
    size = measure(sparsereg.load(pruned), IMAGE)
    rows = report["variants"]
    assert list(rows) == ["dense", "dense folded", "masked", "compact", "compact folded"]
    assert (rows["compact"]["params"], rows["compact"]["macs"]) == (size["params"], size["macs"])
    assert rows["dense"]["params"] == rows["masked"]["params"] == 260_650
    assert rows["masked"]["macs"] == size["dense_macs"]
    assert report["sparsity"] == pytest.approx(size["sparsity"])
    for row in rows.values():
        assert row["ms_batch_128"] > row["ms_batch_1"] > 0
    assert rows["dense folded"]["speedup_batch_1"] == 1
    assert rows["compact"]["bytes"] < rows["masked"]["bytes"]
    assert report["open_channels"]["block3/5x5"] == 0 and report["channels"]["block3/5x5"] == 12
    assert set(report["largest_relative_difference"]) == {"compact.pt2", "compact.onnx"}


@pytest.mark.slow
def test_test_py_gives_the_same_accuracy(command, folder, pruned):
    tables = []
    for path in (pruned, folder / "compact.pt"):
        result = command("test.py", f"ckpt_path={path}", "trainer=cpu")
        assert result.code == 0, result.err
        words = ("accuracy", "sparsity", "parameters", "multiply-adds")
        lines = [" ".join(line.split()) for line in result.out.splitlines()]
        tables.append([line for line in lines if any(word in line for word in words)])
    assert tables[0] == tables[1] and len(tables[0]) == 5


@pytest.mark.slow
def test_training_on_resuming_and_testing(command, folder, tmp_path):
    """The network stays as it was cut; its sparsity remains that against the dense network."""
    cut = read_checkpoint(folder / "compact.pt")
    first, second = checkpoint_path(tmp_path, 0), checkpoint_path(tmp_path, 1)
    common = (*SHORT, "without_using_gate=true", f"output_dir={tmp_path}")
    result = command("train.py", *common, f"ckpt_path={folder / 'compact.pt'}")
    assert result.code == 0, result.err
    resume = (f"ckpt_path={first}", "resume_training=true", "trainer.max_epochs=2")
    result = command("train.py", *common, *resume)
    assert result.code == 0, result.err
    uncut = command(
        "train.py",
        *common[:-1],
        f"output_dir={tmp_path}/whole",
        "trainer.max_epochs=2",
        f"ckpt_path={folder / 'compact.pt'}",
    )
    assert uncut.code == 0
    whole = read_checkpoint(checkpoint_path(tmp_path / "whole"))["state_dict"]
    resumed = read_checkpoint(second)["state_dict"]
    assert resumed.keys() == cut["state_dict"].keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert not torch.equal(resumed["net.head.2.weight"], cut["state_dict"]["net.head.2.weight"])
    assert not torch.equal(
        resumed["net.stem.1.running_mean"], cut["state_dict"]["net.stem.1.running_mean"]
    ), "trained in training mode"
    size, before = (measure(sparsereg.load(p), IMAGE) for p in (second, folder / "compact.pt"))
    assert size == before and size["dense_params"] == 260_650


@pytest.mark.slow
def test_train_cut_and_fine_tune_in_one_command(command, small, tmp_path):
    result = command(
        "train.py",
        *SMALL,
        f"ckpt_path={small}",
        "droprate_init=0.9167",  # ln α around the threshold: half of the gates are closed
        "finetune_epochs=2",
        "finetune_lr=2e-4",
        "round_to=4",
        f"output_dir={tmp_path}",
    )
    assert result.code == 0, result.err
    gated, tuned = (read_checkpoint(checkpoint_path(tmp_path, version)) for version in (0, 1))
    assert (checkpoint_path(tmp_path, 0).parent / "last_compact_4" / "compact.pt").exists()
    assert tuned["epoch"] == 1 and not any("qz_loga" in name for name in tuned["state_dict"])
    assert tuned["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 2e-4
    small = compact(sparsereg.load(checkpoint_path(tmp_path, 0)), round_to=4)
    assert tuned["state_dict"].keys() == {f"net.{name}" for name in small.state_dict()}
    assert gated["sparsereg"]["config"]["finetune_epochs"] == 2
    result = command("test.py", f"ckpt_path={checkpoint_path(tmp_path, 1)}", "trainer=cpu")
    assert result.code == 0 and "57,080" in result.out
    last, more = f"ckpt_path={checkpoint_path(tmp_path, 1)}", "trainer.max_epochs=3"
    result = command("train.py", last, "resume_training=true", more)
    assert result.code == 0, result.err
    assert read_checkpoint(checkpoint_path(tmp_path, 2))["epoch"] == 2


@pytest.mark.slow
def test_ungated_checkpoint(command, quick, tmp_path):
    run = (*SMALL, "without_using_gate=true", f"output_dir={tmp_path}")
    assert command("train.py", *run).code == 0
    path = checkpoint_path(tmp_path)
    result = command("compact.py", f"ckpt_path={path}")
    assert result.code == 0, result.err
    assert "no gates: nothing is cut" in result.out
    assert {p.name for p in path.with_name("last_compact").iterdir()} == FILES


@pytest.mark.slow
def test_rounding_is_reported(command, quick, small, tmp_path):
    result = command("compact.py", f"ckpt_path={small}", "round_to=8")
    assert result.code == 0, result.err
    assert "times as fast as round_to=1" in result.out
    rows = json.loads((tmp_path / "best_compact_8/report.json").read_text())["variants"]
    assert rows["compact folded"]["params"] > rows["compact folded, round_to=1"]["params"]


@pytest.mark.slow
def test_without_onnx_the_rest_is_written(command, quick, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = command("compact.py", f"ckpt_path={small}", "normalise=inside")
    assert result.code == 0 and "pip install -r requirements-export.txt" in result.err
    about = json.loads((tmp_path / "best_compact" / "deploy.json").read_text())
    assert about["classes"] == [*"0123456789"]
    assert about["input"] == {"name": "images", "type": "uint8", "shape": ["batch", *IMAGE]}
    report = json.loads((tmp_path / "best_compact" / "report.json").read_text())
    assert about["sparsity"] == pytest.approx(report["sparsity"], abs=1e-9)
    assert {p.name for p in (tmp_path / "best_compact").iterdir()} == FILES - {"compact.onnx"}


def test_collapsed_network(command, pruned, tmp_path):
    checkpoint = torch.load(pruned, weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        if "block4" in name and name.endswith("qz_loga"):
            tensor.fill_(-5)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    result = command("compact.py", f"ckpt_path={tmp_path / 'best.ckpt'}")
    assert_one_line(result, "block5.branches", "block4.gates.1x1", "lambda_l0")
    assert not (tmp_path / "best_compact").exists()


def test_unwritable_target(command, pruned, tmp_path):
    path = copy_of(pruned, tmp_path)
    (tmp_path / "best_compact").write_text("in the way")
    assert_one_line(command("compact.py", f"ckpt_path={path}"), "best_compact", "File exists")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), ["ckpt_path=… is needed"]),
        (("ckpt_path=missing.ckpt",), ["missing.ckpt", "does not exist"]),
        (("ckpt_path={foreign}",), ["was not written by sparsereg"]),
        (("ckpt_path={pruned}", "round_to=0"), ["round_to=0", "at least 1"]),
        (("ckpt_path={pruned}", "lambda_l0=1"), ["lambda_l0=1", "compact.py takes ckpt_path"]),
    ],
)
def test_mistakes(command, pruned, tmp_path, arguments, words):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    names = {"foreign": tmp_path / "foreign.pt", "pruned": pruned}
    result = command("compact.py", *(argument.format(**names) for argument in arguments))
    assert_one_line(result, *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, words",
    [
        (("without_using_gate=false",), ["compact network", "add without_using_gate=true"]),
        (("without_using_gate=true", "model.act_fn_name=gelu"), ["model.act_fn_name=gelu"]),
        (("without_using_gate=true", "resume_training=true"), ["resume_training=false"]),
    ],
)
def test_mistakes_with_a_compact_network(command, folder, tmp_path, arguments, words):
    path = folder / "compact.pt"
    result = command("train.py", *SHORT, f"ckpt_path={path}", f"output_dir={tmp_path}", *arguments)
    assert_one_line(result, *words)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("finetune_epochs=2", "without_using_gate=true"), ["without_using_gate=false"]),
        (("finetune_epochs=-1",), ["finetune_epochs=-1", "at least 0"]),
        (("finetune_lr=0.1",), ["needs finetune_epochs"]),
        (
            ("finetune_epochs=1", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2"),
            ["at least trainer.check_val_every_n_epoch=2"],
        ),
    ],
)
def test_mistakes_about_fine_tuning(command, tmp_path, arguments, words):
    result = command("train.py", "data=digits", f"output_dir={tmp_path}", *arguments)
    assert_one_line(result, *words)


def test_a_checkpoint_is_not_a_compact_file(pruned):
    with pytest.raises(UserError, match=r"not cut yet: python compact\.py"):
        load_compact(pruned)


@pytest.mark.slow
def test_benchmark_finds_the_sparsity_and_measures_every_network(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SPARSITIES", (0.64,))
    monkeypatch.setattr(benchmark, "BATCHES", {1: 1})
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    [title] = [line for line in lines if line.startswith("sparsity")]
    assert abs(float(title.split()[1].strip(",")) - 0.64) < 0.02
    rows = [line.split() for line in lines if line.lstrip().startswith("1 ")]
    assert len(rows) == 7 and all(float(row[-3]) > 0 for row in rows)
