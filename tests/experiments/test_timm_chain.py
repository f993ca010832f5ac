"""From training to ONNX with networks of timm, as a user does it; all four with -m coverage."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SHORT, checkpoint_path, summary

from sparsereg import checkpoint
from sparsereg.checkpoint import load
from sparsereg.data import Digits
from sparsereg.export import report as compact_report

SLOW = ("mobilenetv4_conv_small", "regnety_002", "ghostnet_050")
NAMES = ("convnext_atto", *(pytest.param(name, marks=pytest.mark.coverage) for name in SLOW))
SIZE = 32  # convnext_atto divides it by 32
TARGET = ("target_sparsity=0.5", "cost=macs", "droprate_init=0.05")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_multiply_adds_go(name, command, tmp_path, monkeypatch):
    model = ("model=timm", f"model.name={name}")
    images = (f"data.image_size={SIZE}", "data.batch_size=8")
    run = (*SHORT, *images, *model, *TARGET, f"output_dir={tmp_path}")
    assert command("train.py", *run).code == 0
    assert summary(tmp_path)["reached_sparsity"] == pytest.approx(0.5, abs=0.01)

    loaded = []  # to build these networks again takes seconds
    monkeypatch.setattr(checkpoint, "load", lambda path: loaded.append(load(path)) or loaded[-1])
    monkeypatch.setattr(compact_report, "BATCHES", {1: 1})  # how fast it is, is not the point here,
    monkeypatch.setattr(compact_report, "fold", lambda net: net)  # nor what folding gains
    last = checkpoint_path(tmp_path)
    assert command("compact.py", f"ckpt_path={last}").code == 0
    folder = last.with_name("last_compact")
    sizes = json.loads((folder / "report.json").read_text())["variants"]
    assert sizes["compact"]["macs"] / sizes["dense"]["macs"] == pytest.approx(0.5, abs=0.01)

    data = Digits(SIZE, batch_size=64, eval_batch_size=64)
    data.setup()
    images, _ = data.on_after_batch_transfer(next(iter(data.test_dataloader())))  # normalised
    with torch.no_grad():
        masked = loaded[0](images).numpy()
    session = onnxruntime.InferenceSession(folder / "compact.onnx")
    [logits] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(logits, masked, rtol=0, atol=1e-4 * np.abs(masked).max())
