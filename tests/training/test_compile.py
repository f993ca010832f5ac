"""compile=true computes the same, and leaves no trace in a checkpoint."""

import pytest
import torch
from conftest import SMALL, assert_one_line
from torch import Tensor, nn

from sparsereg.model.basic_l0_blocks import L0Gate
from sparsereg.sparsity.objective import L0Penalty
from sparsereg.training.module import L0Module

IMAGE = (3, 8, 8)


class OneBlock(nn.Module):
    """As GoogleNet, with one gated layer: it compiles in seconds."""

    temperature = 2 / 3

    def __init__(self):
        super().__init__()
        self.gate = L0Gate(8, droprate_init=0.3)
        conv = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        self.layers = nn.Sequential(conv, self.gate, head)

    def qz_loga(self) -> Tensor:
        return self.gate.qz_loga

    def forward(self, images: Tensor, qz_loga: Tensor | None = None) -> Tensor:
        return self.layers(images)


def train(compile: bool, steps: int) -> tuple[list[float], L0Module]:
    torch.manual_seed(0)
    net = OneBlock()
    objective = L0Penalty(net, IMAGE, cost="macs")
    module = L0Module(net, 10, None, None, objective=objective, compile=compile)
    module.penalty = objective.penalty  # there is no trainer to log to
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        batch = torch.randn(16, *IMAGE), torch.randint(10, (16,))
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it itself
def test_compiled_and_eager_losses_are_the_same():
    from torch._dynamo.utils import counters

    eager, plain = train(compile=False, steps=50)
    counters.clear()
    compiled, module = train(compile=True, steps=50)
    assert counters["stats"]["unique_graphs"] == 2, "the network and the cost"
    assert not counters["graph_break"]
    assert max(abs(a - b) for a, b in zip(eager, compiled, strict=True)) < 1e-5
    assert eager[-1] < eager[0] and len(set(eager)) == 50
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert all(key.startswith("net.") or "acc" in key for key in module.state_dict())


def test_compiling_needs_a_compiler(command, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-compiler")
    result = command("train.py", *SMALL, "compile=true", f"output_dir={tmp_path}")
    assert_one_line(result, "compile=true", "C++ compiler")


@pytest.mark.parametrize("value", ["maybe", "1"])
def test_compile_is_true_or_false(command, value, tmp_path):
    result = command("train.py", *SMALL, f"compile={value}", f"output_dir={tmp_path}")
    assert_one_line(result, "compile", "true or false")
