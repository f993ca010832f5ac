"""What experiments/budgets.py prints of runs that are there. The training itself is replaced."""

import json
import subprocess
from pathlib import Path

import pytest

from experiments import budgets, resumable


@pytest.fixture
def runs(tmp_path, monkeypatch) -> list[list[str]]:
    """The settings of each run that was started; one with gates leaves itself and its cut."""
    started: list[list[str]] = []
    gates = {"macs": 60, "dense_macs": 100, "val_acc": 0.5, "test_acc": 0.5}

    def run(command, **options) -> subprocess.CompletedProcess:
        started.append(command[2:])
        asked = any(setting.startswith("target_speedup=") for setting in command)
        times = {"target_latency": 4.0, "predicted_latency": 3.96} if asked else {}
        folder = next(s.partition("=")[2] for s in command if s.startswith("output_dir="))
        leave(tmp_path / folder, 0, gates | times)
        leave(tmp_path / folder, 1, gates | {"val_acc": 0.901, "test_acc": 0.899})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(resumable, "ROOT", tmp_path)
    monkeypatch.setattr(budgets, "ROOT", tmp_path)
    monkeypatch.setattr(resumable.subprocess, "run", run)
    return started


def leave(folder: Path, version: int, results: dict) -> None:
    run = folder / "lightning_logs" / f"version_{version}"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(results))


def test_speed_says_what_was_asked_predicted_and_measured(runs, monkeypatch, capsys):
    monkeypatch.setattr(budgets, "SPEEDUPS", (1.5,))
    monkeypatch.setattr(budgets.Budgets, "measure", lambda self, *names: [6.0, 4.0, 5.0])
    command = ["speed", "--start", "DENSE", "--", "trainer.max_epochs=2"]
    assert budgets.main(command) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == [
        "| dense |  |  | 6 | 1 | 100 |  |  |",
        "| 1.5 × | 4 | 3.96 | 4 | 1.50 | 60 | 90.10 | 89.90 |",
        "| target_macs=60 |  |  | 5 | 1.20 | 60 | 90.10 | 89.90 |",
    ]
    assert "target_speedup=1.5" in runs[0] and "target_macs=60" in runs[1]
    assert all({"ckpt_path=DENSE", "seed=1"} <= {*settings} for settings in runs)
    assert budgets.main(command) == 0 and len(runs) == 2, "finished runs are found"
