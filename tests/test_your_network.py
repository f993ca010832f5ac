"""docs/your-network.md, line by line, with a folder of generated images."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.size import count
from sparsereg.surgery.insert import place_gates

PAGE = (Path(__file__).parents[1] / "docs" / "your-network.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def write_images(folder: Path) -> None:
    """Red and blue images, noisy; 24 for training and 8 for the test."""
    generator = np.random.default_rng(0)
    for part, number in (("train", 24), ("test", 8)):
        for name, channel in (("red", 0), ("blue", 2)):
            (folder / part / name).mkdir(parents=True)
            for i in range(number // 2):
                pixels = generator.integers(0, 160, (32, 32, 3))
                pixels[..., channel] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{i}.png")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Lightning's advice about loaders
def test_every_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    pytest.importorskip("onnxruntime")
    names: dict = {"__name__": "your_network"}
    torch.manual_seed(0)
    for block in BLOCKS:
        exec(compile(block, "your-network.md", "exec"), names)
    out = capsys.readouterr().out
    assert re.search(r"(59|60)\.\d% fewer multiply-adds", out), out
    net, small, image_shape = names["net"], names["small"], names["data"].image_shape
    sizes = [count(n, image_shape)["macs"] for n in (names["YourNetwork"](2), small)]
    assert 0.39 < sizes[1] / sizes[0] < 0.41
    assert list(gate_layers(net)) == ["expand.0", "last.0", "stem.0"]
    accuracy = (names["logits"].argmax(1) == names["labels"].numpy()).mean()
    assert accuracy >= 0.75
    assert (tmp_path / "compact.onnx").exists()


def test_the_printed_table_is_the_one_on_the_page():
    names: dict = {}
    exec(BLOCKS[1].replace("len(data.classes)", "2"), names)
    _, places = place_gates(names["net"], coupled=True)
    for place in places:
        row = f"│ {place.layer:<10} │ {place.channels or place.width:<8} │"
        assert row in PAGE, row
        assert place.why_not is None or place.why_not in PAGE
