"""The networks in models/ are what their records say, and compute what they did when they were put
there; shown on a network of the digits that is put into another folder, too."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, assert_one_line

import sparsereg
from experiments import models
from sparsereg.checkpoint import read_checkpoint
from sparsereg.errors import UserError
from sparsereg.runs.records import read_records
from sparsereg.sparsity.size import count

KEPT = sorted((ROOT / "models").glob("*.pt"))


def check(path: Path) -> None:
    content, net = read_checkpoint(path), sparsereg.load(path)
    sample = content["sample"]
    with torch.inference_mode():
        logits = net(models.as_input(sample["images"], path))
    torch.testing.assert_close(logits, sample["logits"], rtol=1e-4, atol=1e-4)
    [record] = [r for r in read_records(path.with_name("records.csv")) if r.name == path.stem]
    size = count(net, content["sparsereg"]["data"]["image_shape"])
    assert size == {key: record.results[key] for key in ("params", "macs")}
    assert "/" not in "".join(content["sparsereg"]["overrides"]), "a path of some machine"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_networks_in_the_repository(path):
    check(path)


def test_they_are_small():
    assert sum(path.stat().st_size for path in KEPT) < 4_000_000


@pytest.mark.slow
def test_a_run_is_put_there(command, lenet5, dense, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "MODELS", tmp_path / "models")
    runs = {"gated": lenet5.parents[1], "ungated": dense.parents[1]}
    for name, run in [*runs.items(), ("gated", runs["gated"])]:  # once more: the same line
        assert models.main([str(run), name, "--data", "digits"]) == 0
    for name, run in runs.items():
        check(tmp_path / "models" / f"{name}.pt")
        said = command("test.py", f"ckpt_path={tmp_path}/models/{name}.pt")
        assert said.code == 0, said.err
        summary = json.loads((run / "summary.json").read_text())
        assert f"{summary['test_acc']:.2%}" in said.out and f"{summary['params']:,}" in said.out
    assert [r.name for r in read_records(tmp_path / "models/records.csv")] == ["gated", "ungated"]
    kept = f"ckpt_path={tmp_path}/models/ungated.pt"
    run_gates = (*SMALL, kept, "droprate_init=0.05", f"output_dir={tmp_path}")
    assert command("train.py", *run_gates).code == 0, "a dense network can be given gates"
    said = command("train.py", kept, "resume_training=true", "without_using_gate=true")
    assert_one_line(said, "without the state of a training run")
    (run / "summary.json").rename(tmp_path / "summary.json")
    try:
        with pytest.raises(UserError, match="is unfinished"):
            models.keep(run, "ungated", "digits")
    finally:
        (tmp_path / "summary.json").rename(run / "summary.json")


def test_the_checkpoint_that_the_results_are_of(lenet5, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "MODELS", tmp_path / "models")
    run = shutil.copytree(lenet5.parents[1], tmp_path / "version_0")
    results = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(results | {"checkpoint": "checkpoints/last.ckpt"}))
    (run / "checkpoints/best.ckpt").unlink()
    check(models.keep(run, "last", "digits"))
