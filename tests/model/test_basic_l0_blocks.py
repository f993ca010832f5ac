"""Gates against values computed with 40-digit arithmetic (tests/reference/hard_concrete.json)."""

import json
from pathlib import Path

import pytest
import torch

from sparsereg.model.basic_l0_blocks import (
    L0Gate,
    deterministic_gate,
    draw_gates,
    prob_nonzero,
    sample_hard_concrete,
)

REFERENCE = json.loads((Path(__file__).parents[1] / "reference/hard_concrete.json").read_text())
CASES = REFERENCE["cases"]


def value_and_gradient(function, qz_loga: float) -> tuple[float, float]:
    x = torch.tensor([qz_loga], dtype=torch.float64, requires_grad=True)
    value = function(x)
    value.sum().backward()
    return value.item(), x.grad.item()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"qz_loga={case['qz_loga']}")
def test_reference_values_and_gradients(case):
    value, gradient = value_and_gradient(prob_nonzero, case["qz_loga"])
    assert value == pytest.approx(case["prob_nonzero"], rel=1e-6)
    assert gradient == pytest.approx(case["d_prob_nonzero_d_qz_loga"], rel=1e-6)
    gate = deterministic_gate(torch.tensor(case["qz_loga"], dtype=torch.float64))
    assert gate.item() == pytest.approx(case["deterministic_gate"], abs=1e-6)
    for sample in case["samples"]:
        uniform = torch.tensor([sample["uniform"]], dtype=torch.float64)
        value, gradient = value_and_gradient(
            lambda x, u=uniform: sample_hard_concrete(x, u), case["qz_loga"]
        )
        assert value == pytest.approx(sample["gate"], abs=1e-6)
        assert gradient == pytest.approx(sample["d_gate_d_qz_loga"], abs=1e-6)


@pytest.mark.parametrize("temperature", [1 / 3, 2 / 3, 1.0])
def test_samples_are_nonzero_as_often_as_prob_nonzero_says(temperature):
    torch.manual_seed(0)
    qz_loga = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    n = 200_000
    share = draw_gates(qz_loga, n, temperature).ne(0).double().mean(0)
    p = prob_nonzero(qz_loga.double(), temperature)
    assert ((share - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize("training", [True, False])
def test_gates_far_from_zero_open_or_close_exactly(training):
    gate = L0Gate(2).train(training)
    gate.qz_loga.data = torch.tensor([-10.0, 10.0])
    if training:  # a sample is not certain: P(z ≠ 0) of the closed gate is 0.0002
        torch.manual_seed(0)
    y = gate(torch.ones(16, 2, 3, 3))
    assert (y[:, 0] == 0).all() and (y[:, 1] == 1).all()


def test_masks_differ_within_a_batch_only_per_sample():
    torch.manual_seed(0)
    x = torch.ones(8, 100, 2, 2)
    per_sample, per_batch = L0Gate(100), L0Gate(100, sampling="per_batch")
    masks = per_sample(x)[:, :, 0, 0]
    assert len(masks.unique(dim=0)) == 8
    assert len(per_batch(x)[:, :, 0, 0].unique(dim=0)) == 1
    assert not torch.equal(per_batch(x), per_batch(x)), "a new mask for each batch"


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6), (4, 5, 6, 7), (4, 5, 6, 7, 8)])
def test_any_number_of_trailing_dimensions(shape):
    gate = L0Gate(5)
    y = gate(torch.ones(shape))
    assert y.shape == shape
    flat = y.flatten(2) if y.dim() > 2 else y.unsqueeze(2)
    assert (flat == flat[:, :, :1]).all(), "one gate for all positions of a channel"


def test_eval_is_deterministic_and_follows_the_test_time_gate():
    gate = L0Gate(3).eval()
    gate.qz_loga.data = torch.tensor([-3.0, 0.0, 1.0])
    x = torch.randn(2, 3, 4, 4)
    expected = x * deterministic_gate(gate.qz_loga).view(1, 3, 1, 1)
    assert torch.equal(gate(x), expected) and torch.equal(gate(x), gate(x))


def test_gradient_reaches_qz_loga():
    torch.manual_seed(0)
    gate = L0Gate(50)
    gate(torch.ones(64, 50)).sum().backward()
    assert (gate.qz_loga.grad > 0).all()


@pytest.mark.parametrize("droprate_init, l_c0", [(0.5, 0.8318), (0.05, 0.9895)])
def test_initial_gates(droprate_init, l_c0):
    torch.manual_seed(0)
    gate = L0Gate(100_000, droprate_init)
    mean = torch.tensor((1 - droprate_init) / droprate_init).log()
    assert gate.qz_loga.mean().item() == pytest.approx(mean.item(), abs=5 * 0.01 / 100_000**0.5)
    assert gate.qz_loga.std().item() == pytest.approx(0.01, rel=0.02)
    assert prob_nonzero(gate.qz_loga).mean().item() == pytest.approx(l_c0, abs=1e-4)


def test_noise_is_float32_under_autocast():
    """In bfloat16, 1 - ε rounds to 1: the logit would be infinite."""
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.uniform_.default:
                seen.append(result.dtype)
            return result

    gate = L0Gate(4)
    with torch.autocast("cpu", torch.bfloat16), Spy():
        y = gate(torch.ones(2, 4, dtype=torch.bfloat16))
    assert seen == [torch.float32] and y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong",
    [{"droprate_init": d} for d in (0, 1, -0.1, 1.5, float("nan"))]
    + [{"temperature": t} for t in (0, -1, 1.01, float("nan"))]
    + [{"sampling": "per_pixel"}],
    ids=str,
)
def test_arguments_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        L0Gate(4, **wrong)
