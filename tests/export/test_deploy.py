"""Exported files say what they are, and run without this project."""

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

import sparsereg
from sparsereg.errors import UserError
from sparsereg.export import formats
from sparsereg.model.basic_l0_blocks import L0Gate

IMAGE, MEAN, STD = (3, 8, 8), [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
KNOWN = {"classes": ["left", "right", "größer"], "mean": MEAN, "std": STD}
PAGE = (ROOT / "docs" / "compact.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), L0Gate(8)),
        *(nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)),
    )
    net[3].qz_loga.data[:6] = -9
    return net.eval()


@pytest.fixture(scope="module", params=["outside", "inside"])
def folder(request, net, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "exported"
    found = sparsereg.export(net, IMAGE, folder, **KNOWN, normalise=request.param)
    assert found.keys() == {"compact.pt2", "compact.onnx"} and max(found.values()) <= 1e-4
    return folder


class Median(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.median(dim=1).values


def test_what_has_no_onnx_is_said_and_the_rest_written(tmp_path):
    (tmp_path / "compact.onnx").write_bytes(b"of an earlier cut")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), L0Gate(8), nn.Conv2d(8, 4, 1), nn.Flatten(2), Median())
    with pytest.warns(UserWarning, match=r"compact.onnx is not written: .*median.*") as warned:
        found = sparsereg.export(net.eval(), IMAGE, tmp_path, **KNOWN)
    assert [*found] == ["compact.pt2"] and "\n" not in str(warned[0].message)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["compact.pt2", "deploy.json"]


def pixels(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (number, *IMAGE), generator=generator, dtype=torch.uint8)


def test_images_as_they_are_or_normalised(net, folder):
    images = pixels(5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    normal = (images / 255 - mean) / std
    with torch.no_grad():
        expected = net(normal)
    taken = images if "inside" in str(folder) else normal
    session = onnxruntime.InferenceSession(folder / "compact.onnx")
    [logits] = session.run(["logits"], {"images": taken.numpy()})
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-4)
    program = torch.export.load(folder / "compact.pt2").module()
    assert torch.allclose(program(taken), expected, atol=1e-4)


def test_what_they_say(net, folder):
    about = json.loads((folder / "deploy.json").read_text(encoding="utf-8"))
    size = sparsereg.measure(net, IMAGE)
    assert about["version"] == sparsereg.__version__
    assert (about["classes"], about["mean"], about["std"]) == tuple(KNOWN.values())
    assert about["sparsity"] == size["sparsity"] > 0.5
    assert (about["params"], about["macs"]) == (size["params"], size["macs"])
    inside = about["normalise"] == "inside"
    kind = "uint8" if inside else "float32"
    assert about["input"] == {"name": "images", "type": kind, "shape": ["batch", *IMAGE]}
    model = onnx.load(folder / "compact.onnx")
    told = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(told["classes"]) == KNOWN["classes"] and told["version"] == about["version"]
    assert json.loads(told["sparsity"]) == about["sparsity"]
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    is_uint8 = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert is_uint8 == inside
    more = {"deploy.json": ""}
    torch.export.load(folder / "compact.pt2", extra_files=more)
    assert json.loads(more["deploy.json"]) == about


def test_the_script_of_the_docs(net, folder, tmp_path, monkeypatch, capsys):
    [script] = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "deploy" in b][:1]
    assert "sparsereg" not in script, "it runs without this project"
    sparsereg.save(net, tmp_path / "net.pt", IMAGE, **KNOWN)
    generator = np.random.default_rng(0)
    wide = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(5, 1)
    monkeypatch.chdir(tmp_path)
    for name, image in {"a.png": pixels(1)[0].permute(1, 2, 0).numpy(), "b.png": wide}.items():
        Image.fromarray(image).save(name)
    monkeypatch.setattr("sys.argv", ["classify.py", str(folder), "a.png", "b.png"])
    exec(compile(script, "classify.py", "exec"), {"__name__": "__main__"})
    says, *lines = capsys.readouterr().out.splitlines()
    assert json.loads(says.removeprefix("the file says: ")) == KNOWN["classes"]
    for line, name in zip(lines, ("a.png", "b.png"), strict=True):
        [found] = sparsereg.predict(tmp_path / "net.pt", tmp_path / name)
        said, share = re.fullmatch(rf"{name}: (\w+) \((.*)%\)", line).groups()
        assert said == found.name
        # of the wide one the half pixels at its borders differ
        assert float(share) == pytest.approx(100 * found.probabilities[said], abs=1.0)


def test_mistakes(net, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "has_onnx", lambda: False)
    with pytest.raises(UserError, match="normalise=no must be one of outside, inside"):
        sparsereg.export(net, IMAGE, tmp_path, normalise="no")
    with pytest.raises(UserError, match=r"normalise=inside needs mean=… and std=…"):
        sparsereg.export(net, IMAGE, tmp_path, normalise="inside")
    with pytest.raises(UserError, match="mean has 1 values for 3 channels"):
        sparsereg.export(net, IMAGE, tmp_path, mean=[0.5], std=STD)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file: File exists"):
        sparsereg.export(net, IMAGE, tmp_path / "file")
    sparsereg.export(net, IMAGE, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "compact.pt2", "deploy.json"}
