"""The time that is asked for is the time that the cut network takes."""

import json
import sys
import time

import pytest
import torch
import vector_processor
from conftest import SMALL, assert_one_line, checkpoint_path, summary
from torch import nn

from sparsereg.budgets.clock import Clock, Shape, seconds
from sparsereg.budgets.latency import ExpectedLatency, between, fill, with_gates
from sparsereg.budgets.rounding import fastest
from sparsereg.budgets.target_latency import TargetLatency, together
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.objective import L0Penalty
from sparsereg.training.results import warn_missed

IMAGE = (3, 16, 16)
TWO_SMALL = (*SMALL, "trainer.max_epochs=2", "trainer.limit_train_batches=6")


@pytest.fixture
def processor(monkeypatch) -> None:
    vector_processor.take_over(monkeypatch)


@pytest.fixture
def clock(tmp_path) -> Clock:
    return Clock(batch=1, backend="onnxruntime", threads=1, cache_dir=tmp_path)


@pytest.fixture
def net() -> GoogleNet:
    torch.manual_seed(0)
    net = GoogleNet(droprate_init=0.05)
    for gate in net.gates.values():
        gate.qz_loga.data.normal_(2, 2)
    return net.eval()


def test_between_the_widths_of_the_grid():
    grid = torch.tensor([0.0, 1, 8, 16])
    shares = between(grid, torch.tensor([0.0, 0.25, 1, 10, 16]))
    wanted = [[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0, 1, 0, 0], [0, 0, 0.75, 0.25], [0, 0, 0, 1]]
    assert shares.tolist() == wanted


def test_more_channels_never_take_less_time():
    grid = torch.tensor([0.0, 1, 8])
    table = fill(grid, {(1, 1): 5.0, (1, 8): 4.0, (8, 1): 3.0, (8, 8): 9.0})
    assert table.tolist() == [[0, 0, 0], [0, 5, 5], [0, 5, 9]]


def test_the_time_of_a_cut_network_is_that_of_its_layers(processor, clock, net):
    """On a processor of whole vectors exactly, whichever gates are open."""
    cost = ExpectedLatency(net, IMAGE, clock)
    for share in (1.0, 0.7, 0.4):
        is_open = torch.rand(cost.num_gates) < share
        measured = cost.time({"cut": with_gates(net, is_open)})["cut"]
        assert cost.count(is_open)["latency"] == pytest.approx(measured, rel=1e-3)
    assert cost(torch.ones(cost.num_gates))["latency"].item() == pytest.approx(1)


def test_the_expected_time_is_differentiable(processor, clock, net):
    cost = ExpectedLatency(net, IMAGE, clock)
    prob_open = torch.full((cost.num_gates,), 0.6, requires_grad=True)
    latency = cost(prob_open)["latency"]
    [gradient] = torch.autograd.grad(latency, prob_open)
    assert (gradient >= 0).all() and (gradient > 0).float().mean() > 0.9
    step = 0.01 * torch.randn(cost.num_gates)
    moved = (cost(prob_open + step)["latency"] - cost(prob_open - step)["latency"]) / 2
    assert moved.item() == pytest.approx((gradient @ step).item(), rel=0.1, abs=1e-5)
    penalty = L0Penalty(net, IMAGE, 2.0, "latency", expected_cost=cost)
    assert penalty.penalty().item() == pytest.approx(2 * penalty.expected["latency"].item())


def test_a_wrong_prediction_is_corrected_once(processor, clock, net, capsys, monkeypatch):
    """What the cut network takes is 20 % more than predicted."""
    objective = TargetLatency(net, IMAGE, clock, speedup=2, steps=9)
    asked = objective.milliseconds
    assert asked == pytest.approx(objective.expected_cost.dense["latency"] / 2)
    measure = objective.measure
    monkeypatch.setattr(objective, "measure", lambda is_open: 1.2 * measure(is_open))
    objective.settle()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("target_speedup=2: ") and "asked" in second
    assert 1.2 * objective.report()["latency"] == pytest.approx(asked, rel=0.05)


def test_gates_close_by_vectors_where_that_keeps_more(processor, clock, net):
    objective = TargetLatency(net, IMAGE, clock, speedup=2, steps=9)
    objective.settle()
    widths = [int((gate.qz_loga > 0).sum()) for gate in objective.gates]
    vectors = [w for w, gate in zip(widths, objective.gates, strict=True) if w % 16 == 0]
    assert len(vectors) > 16, widths


def test_gates_of_a_vector_stay_together_in_their_order():
    values = together(torch.tensor([1.0, 5, 3, 2, 9]), 2)
    assert values.argsort(descending=True).tolist() == [4, 1, 2, 3, 0]
    assert values.tolist() == pytest.approx([1, 7, 2.5, 2.5, 7], abs=1e-3)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_measured_once(tmp_path, backend, monkeypatch):
    clock = Clock(1, backend, 1, tmp_path / "new")
    conv = Shape.of(nn.Conv2d(16, 16, 3, padding=1), (16, 16))
    points = {(conv, 16, 16), (conv, 64, 64), (Shape.of(nn.Linear(9, 9), ()), 8, 10)}
    points |= {(Shape.of(nn.Conv2d(16, 16, 3, groups=16), (16, 16)), 16, 16)}
    times = clock.layers(points)
    assert times[conv, 64, 64] > times[conv, 16, 16] > 0 and len(times) == 4
    [file] = (tmp_path / "new").iterdir()
    assert backend in file.name and len(json.loads(file.read_text())) == 4
    monkeypatch.setattr(Clock, "measure", lambda *_: pytest.fail("measured again"))
    assert Clock(1, backend, 1, tmp_path / "new").layers(points) == times


@pytest.mark.parametrize(
    "content", ["[]", "3", "[" * 10**5, '{"a": "1"}', '{"a": -1}', '{"a": NaN}']
)
def test_a_cache_of_anything_else_is_measured_anew(clock, monkeypatch, content):
    clock.file.write_text(content)
    monkeypatch.setattr(Clock, "measure", lambda _, points: [2.0] * len(points))
    points = {(Shape(()), 8, 10)}
    assert clock.layers(points) == {point: 2.0 for point in points}
    assert list(json.loads(clock.file.read_text()).values()) == [2.0]


def test_a_cache_folder_that_cannot_be_is_said_before_measuring(command, tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("in the way")
    asked = ("target_speedup=2", "latency.backend=torch", f"latency.cache_dir={tmp_path}/file")
    result = command("train.py", *SMALL, *asked, f"output_dir={tmp_path / 'out'}")
    assert_one_line(result, f"latency.cache_dir={tmp_path}/file", "File exists")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_call_does_not_count():
    waits = iter([0.0, 0.01])
    assert seconds(lambda: time.sleep(next(waits, 0.0)), 0.02) < 0.002


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_busy_machine_is_named(clock, monkeypatch, capsys, share):
    monkeypatch.setattr(time, "thread_time", lambda: share * time.perf_counter())
    clock.layers({(Shape(()), 3, 2)})
    said = "other programs had 50% of the processor: the times are too long"
    assert (said in capsys.readouterr().out) == (share < 0.8)


def test_rounding_has_to_pay():
    assert fastest({"1": 1.0, "8": 0.99, "16": 1.2}) == 1
    assert fastest({"1": 1.0, "8": 0.97, "16": 0.9}) == 16


@pytest.mark.slow
def test_a_run(command, processor, tmp_path):
    asked = ("target_speedup=1.42", f"output_dir={tmp_path}")
    result = command("train.py", *TWO_SMALL, *asked)
    assert result.code == 0 and "warning" not in result.err, result.err
    results = summary(tmp_path)
    assert results["target_latency"] == pytest.approx(results["dense_latency"] / 1.42, rel=1e-3)
    assert results["latency"] == pytest.approx(results["target_latency"], rel=0.05)
    assert results["predicted_latency"] == pytest.approx(results["latency"], rel=0.05)
    assert "ms, batch 1, " in result.out and "measured" in result.out
    more = (f"ckpt_path={checkpoint_path(tmp_path)}", "resume_training=true")
    resumed = command("train.py", *more, "trainer.max_epochs=3")
    assert resumed.code == 0, resumed.err
    assert summary(tmp_path, 1)["latency"] == results["latency"]
    other = command("train.py", *more, "latency.batch=8", "trainer.max_epochs=3")
    assert_one_line(other, "latency.batch=8", "a resumed run keeps it")


@pytest.mark.slow
def test_rounding_by_measurement(command, processor, tmp_path):
    result = command(
        "train.py",
        *TWO_SMALL,
        "finetune_epochs=1",
        "round_to=auto",
        "droprate_init=0.9",
        f"output_dir={tmp_path}",
    )
    assert result.code == 0, result.err
    assert "round_to=auto chooses 1" in result.out
    again = ("finetune_epochs=1", "round_to=auto", "droprate_init=0.9", f"output_dir={tmp_path}")
    skipped = command("train.py", *TWO_SMALL, *again, "skip_finished=true")
    assert skipped.code == 0 and "skipped" in skipped.out


def test_a_missed_time_is_said(capsys):
    results = {"checkpoint": "RUN/best.ckpt", "target_latency": 4.0}
    warn_missed(results | {"latency": 4.19})
    assert capsys.readouterr().err == ""
    warn_missed(results | {"latency": 4.3})
    [line] = capsys.readouterr().err.splitlines()
    assert "4 ms were asked for" in line and "takes 4.3 ms" in line


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("target_latency=0",), ["target_latency=0", "positive"]),
        (("target_latency=1e-6",), ["target_latency=1e-06", "out of reach", "the fastest takes"]),
        (("target_latency=99",), ["target_latency=99", "already"]),
        (("target_speedup=1",), ["target_speedup=1", "above 1"]),
        (("target_speedup=2", "target_latency=1"), ["ask for one"]),
        (("target_speedup=2", "cost=macs"), ["cost=macs", "counts latency"]),
        (("target_speedup=2", "latency.backend=tflite"), ["latency.backend=tflite", "torch"]),
        (("target_speedup=2", "trainer.devices=2"), ["trainer.devices=2", "one process"]),
        (("target_speedup=2", "round_to=8"), ["round_to=8", "target_speedup=2"]),
        (("round_to=some",), ["round_to=some", "or auto"]),
    ],
)
def test_mistakes(command, processor, tmp_path, arguments, words):
    result = command("train.py", *SMALL, *arguments, f"output_dir={tmp_path}")
    assert_one_line(result, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", ["target_speedup=2", "cost=latency", "finetune_epochs=2"])
def test_without_the_backend(command, tmp_path, monkeypatch, asked):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    rounding = ("round_to=auto",) if asked.startswith("fine") else ()
    result = command("train.py", *SMALL, asked, *rounding, f"output_dir={tmp_path}")
    assert_one_line(result, "latency.backend=onnxruntime", "requirements-export.txt")
