"""docs/your-loop.md, line by line, and docs/sparsereg.ipynb, cell by cell."""

import json
import re
from pathlib import Path

import matplotlib
import pytest
import torch

from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.size import count

DOCS = Path(__file__).parents[1] / "docs"
LOOP, LIGHTNING = re.findall(
    r"```python\n(.*?)```", (DOCS / "your-loop.md").read_text(encoding="utf-8"), flags=re.DOTALL
)


def numbered(block: str) -> list[str]:
    return [line for line in block.splitlines() if re.search(r"# \d$", line)]


def test_without_the_numbered_lines_it_is_the_loop_without_gates():
    assert [line[-1] for line in numbered(LOOP)] == [*"1234567"], "at most eight"
    without = "\n".join(line for line in LOOP.splitlines() if line not in numbered(LOOP))
    names: dict = {}
    exec(without.replace("epochs, lr = 10,", "epochs, lr = 1,"), names)
    assert not gate_layers(names["net"]) and "gates" not in names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Lightning's advice about loaders
def test_every_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "your_loop"}
    short = LOOP.replace("epochs, lr = 10,", "epochs, lr = 3,")
    for block in (short, LIGHTNING.replace("max_epochs=3", "max_epochs=2")):
        exec(compile(block, "your-loop.md", "exec"), names)
        if block == short:
            small, dense = (count(names[n], names["data"].image_shape) for n in ("small", "net"))
            assert 1 - small["macs"] / dense["macs"] == pytest.approx(0.6, abs=0.01)
            test, normal = names["data"].splits.test, lambda i: (i - names["mean"]) / names["std"]
            with torch.no_grad():
                logits = names["small"](normal(test.images))
            assert (logits.argmax(1) == test.labels).float().mean() > 0.9
    assert names["size"]["sparsity"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.slow
def test_every_cell(tmp_path, monkeypatch, capsys):
    """As a kernel runs them, with few epochs."""
    notebook = json.loads((DOCS / "sparsereg.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EPOCHS", "2")
    matplotlib.use("agg")
    names: dict = {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell, "sparsereg.ipynb", "exec"), names)
    size, found = names["size"], names["found"]
    assert 1 - size["macs"] / size["dense_macs"] == pytest.approx(names["TARGET"], abs=0.01)
    assert found.keys() == {"compact.pt2", "compact.onnx"}
    assert re.search(r"test accuracy in onnxruntime \d\d\.\d%", capsys.readouterr().out)
    probable = [p.probabilities[p.name] for p in names["predictions"]]
    assert len(probable) == 8 and all(0.1 < p <= 1 for p in probable)
    assert all(c.get("outputs", []) == [] for c in notebook["cells"]), "kept without outputs"
