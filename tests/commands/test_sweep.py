"""Sweeps with every launcher: what fails, what goes on, what stops, what is skipped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, SMALL, Result, checkpoint_path, run_folder, run_process, summary

LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
}
pytestmark = pytest.mark.slow
SCRIPT = """
import time
from pathlib import Path

from sparsereg.commands import command_line
from sparsereg.errors import UserError


def main(cfg):
    if cfg.seed == 2:
        raise UserError("seed=2 is not to my taste")
    if cfg.seed == 3:
        raise ZeroDivisionError("a bug")
    Path(cfg.output_dir, f"seed_{cfg.seed}").touch()
    if cfg.seed >= 100:
        time.sleep(60)
    return 1.0 - cfg.lambda_l0 / 100, cfg.lambda_l0 / 100


command_line.run(main)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """A sweep of jobs that take no time; nothing heavy is imported."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, "-m", f"output_dir={folder}", *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SWEEP_OF_TEST": str(folder)},
    )


def sweep(folder: Path, *arguments: str) -> Result:
    begin = time.perf_counter()
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err, time.perf_counter() - begin)


def job_logs(folder: Path) -> str:
    """What submitit's jobs wrote; those of other launchers share the terminal."""
    return "".join(path.read_text() for path in folder.glob(".submitit/*/*.err"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_failed_jobs_are_named_and_the_others_run(launcher, tmp_path):
    result = sweep(tmp_path, *LAUNCHERS[launcher], "seed=1,2,3,4")
    assert result.code == 1, result.err
    assert {path.name for path in tmp_path.glob("seed_*")} == {"seed_1", "seed_4"}
    failed = [line for line in result.err.splitlines() if line.startswith("job ")]
    assert [line.split(":")[0] for line in failed] == ["job 1 failed", "job 2 failed"]
    assert "seed=2" in failed[0] and "seed=3" in failed[1]
    said = result.err + job_logs(tmp_path)
    assert "error: seed=2 is not to my taste" in said
    assert "ZeroDivisionError: a bug" in said and said.count("Traceback") == 1
    assert not list(tmp_path.glob("failed_*"))


@pytest.mark.parametrize("launcher", ["joblib", "submitit"])
def test_sigterm_stops_the_jobs(launcher, tmp_path):
    process = start(tmp_path, *LAUNCHERS[launcher], "seed=100,101")
    while len(list(tmp_path.glob("seed_*"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    end = time.perf_counter() + 20
    while (alive := jobs_of(tmp_path)) and time.perf_counter() < end:
        time.sleep(0.1)
    assert not alive


def jobs_of(folder: Path) -> list[str]:
    """Commands of the processes that a sweep in this folder has left running."""
    commands = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environment = process.info["environ"] or {}
        if environment.get("SWEEP_OF_TEST") == str(folder):
            commands.append(" ".join(process.info["cmdline"] or []))
    return commands


def test_optuna_maximises_accuracy_and_sparsity(tmp_path):
    search = ("hydra/sweeper=search_lambda", "hydra.sweeper.n_trials=5")
    result = sweep(tmp_path, *search, "hydra.sweeper.params.lambda_l0='choice(10.0, 50.0)'")
    assert result.code == 0, result.err
    found = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())["solutions"]
    values = {s["params"]["lambda_l0"]: s["values"] for s in found}
    assert values == {10.0: [0.9, 0.1], 50.0: [0.5, 0.5]}, "both are on the Pareto front"


def test_optuna_goes_on_after_a_failed_job(tmp_path):
    search = ("hydra/sweeper=search_lambda", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1")
    result = sweep(tmp_path, *search, "seed=2")
    assert result.code == 1 and result.err.count("\njob ") + result.err.startswith("job ") == 4


def test_parallel_runs_and_the_rest_of_a_sweep(command, tmp_path):
    """Two runs at once; then one more value, and only that one is trained."""
    arguments = (*SMALL, "trainer.limit_val_batches=1", f"output_dir={tmp_path}")
    result = run_process("train.py", "-m", *LAUNCHERS["joblib"], *arguments, "seed=1,2")
    assert result.code == 0, result.err
    for version in (0, 1):
        assert checkpoint_path(tmp_path, version).exists() and summary(tmp_path, version)
    again = ("skip_finished=true", "trainer.log_every_n_steps=2", "seed=1,2,3")
    result = command("train.py", "-m", *arguments, *again)
    assert result.code == 0, result.err
    assert result.out.count("skipped: ") == 2 and result.out.count("epoch 1/1") == 1
    assert len(list((tmp_path / "lightning_logs").iterdir())) == 3
    assert "seed: 3" in (run_folder(tmp_path, 2) / "config.yaml").read_text()
