"""Each part of the benchmarks in a tiny configuration; the reference computes what we compute."""

import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from forked import FORKS

from benchmarks import memory, ops, reference, startup, steps
from benchmarks.__main__ import PARTS, RESULTS, main
from benchmarks.ops import Count, waits
from benchmarks.reference import Reference
from benchmarks.tables import markdown, targets
from sparsereg.model import googlenet
from sparsereg.model.basic_l0_blocks import prob_nonzero, sample_hard_concrete
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.cost import ExpectedCost

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
TINY = {
    "ops": {"batch": 2},
    "steps": {"rounds": 1, "batch": 2, "processes": 1},
    "data": {"rounds": 1, "images": 256, "calls": 1},
    "epoch": {"rounds": 1, "batches": 2, "batch": 4},
    "scaling": {"rounds": 1, "gates": (8, 16), "batches": (2,), "classes": (10, 20)},
    "sweep": {"runs": (2,), "images": 4, "batch": 2},
    "inference": {"batches": {2: 1}},
}


def numbers(cell) -> list[float]:
    return cell if isinstance(cell, list) else [cell] if not isinstance(cell, str) else []


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    """With processes that need not import torch again."""
    file = tmp_path_factory.mktemp("results") / "tiny.json"
    forked = (patch.object(part, "get_context", lambda _: FORKS) for part in (steps, memory))
    with next(forked), next(forked):
        main([part for part in TINY if part not in ("ops", "epoch", "sweep")], file, TINY)
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_part_measures(measured):
    for part, result in measured.items():
        assert f"torch {torch.__version__}" in result["machine"] and result["seconds"] > 0
        cells = [c for table in result["tables"] for row in table["rows"] for c in row.values()]
        values = [n for cell in cells for n in numbers(cell)]
        assert values and all(math.isfinite(n) and n >= 0 for n in values), part


@pytest.mark.slow
def test_runs_side_by_side_and_end_to_end(tmp_path):
    file = tmp_path / "tiny.json"
    main(["epoch", "sweep"], file, TINY)
    results = json.loads(file.read_text(encoding="utf-8"))
    epoch, sizes = results["epoch"]["tables"]
    assert all(row["images/s"] > 0 for row in epoch["rows"])
    predicted, cut = (row["ms"] for row in sizes["rows"])
    assert 10 * max(predicted) < min(cut)
    [sweep] = results["sweep"]["tables"][0]["rows"]
    assert sweep["runs"] == 2 and sweep["images/s of all"] > 0


@pytest.mark.slow
def test_a_command_is_timed_to_its_last_line():
    assert 0 < startup.seconds("-c", "print(1)") < startup.seconds("train.py", "--help")
    with pytest.raises(RuntimeError, match=r"train\.py lamda=1 ended with 1"):
        startup.seconds("train.py", "lamda=1")


def test_an_unknown_part_is_named():
    with pytest.raises(SystemExit, match="unknown part 'stepz'; there are: ops, steps"):
        main(["stepz"])


def test_the_page_shows_the_committed_numbers():
    results = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))
    assert set(PARTS) - {"compiled"} <= results.keys() <= PARTS.keys()
    assert markdown(targets(results)) in PAGE
    for result in results.values():
        assert all(markdown(table) in PAGE for table in result["tables"])
        assert result["machine"] in PAGE


def test_the_reference_computes_the_same(monkeypatch):
    """Same weights, same noise: same logits, penalty and gradients of the gates."""
    torch.manual_seed(0)
    net = GoogleNet(droprate_init=0.3).double()
    other = Reference(net).double()
    noise = torch.rand(4, 832, dtype=torch.float64)
    pieces = iter(noise.split([len(gate.qz_loga) for gate in net.gates.values()], dim=1))
    monkeypatch.setattr(reference, "draw_noise", lambda samples, gates: next(pieces))
    monkeypatch.setattr(
        googlenet, "draw_gates", lambda qz_loga, n, beta: sample_hard_concrete(qz_loga, noise, beta)
    )
    images, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.arange(4)
    torch.testing.assert_close(net(images), other(images), rtol=1e-9, atol=1e-9)
    assert prob_nonzero(net.qz_loga()).mean().item() == pytest.approx(other.penalty().item(), 1e-6)

    pieces = iter(noise.split([len(gate.qz_loga) for gate in net.gates.values()], dim=1))
    cost = ExpectedCost(net, (3, 32, 32)).double()
    for loss_of in (steps.gated_loss(net, cost), steps.reference_loss(other)):
        loss_of(images, labels).backward()
    ours, theirs = (torch.cat([g.qz_loga.grad for g in n.gates.values()]) for n in (net, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_operations_and_host_reads():
    [table] = ops.run(**TINY["ops"])
    rows = {row["way"]: row for row in table["rows"]}
    ours, plain = rows[steps.PER_SAMPLE], rows[steps.UNGATED]
    assert plain["operations"] <= 340 and ours["operations"] <= 430
    assert rows[steps.REFERENCE]["operations"] > 3 * ours["operations"]
    assert rows[steps.REFERENCE]["host reads"] == 64, "two logarithms for each gate layer"
    assert ours["host reads"] == 0
    assert ours["GFLOP per image"] == pytest.approx(0.474, abs=5e-4)


def test_counting_sees_a_host_read_and_skips_views():
    with Count() as count:
        torch.ones(6).view(2, 3).sum().item()
    assert (count.operations, count.host_reads) == (3, 1)
    assert count.bytes == 24 + 24 + 4 + 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_the_host_does_not_wait_for_the_device():
    step = steps.bound({steps.PER_SAMPLE: steps.gated_step()}, 8)[steps.PER_SAMPLE]
    step()
    assert waits(step) == 0
    assert waits(lambda: torch.ones((), device="cuda").item()) > 0
