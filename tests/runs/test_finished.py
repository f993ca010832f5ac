"""skip_finished: which finished run is the same."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sparsereg.commands.overrides import CONFIG
from sparsereg.runs.finished import dense_run, finished_run

RESULTS = {"val_acc": 0.9, "sparsity": 0.5}


@pytest.fixture(autouse=True)
def hydra_is_there():
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        yield


def configuration(folder: Path, *overrides: str):
    return compose("train", overrides=["data=digits", f"output_dir={folder}", *overrides])


def write_run(folder: Path, version: int, *overrides: str, results: dict | None = RESULTS) -> Path:
    run = folder / "lightning_logs" / f"version_{version}"
    run.mkdir(parents=True)
    text = OmegaConf.to_yaml(configuration(folder, *overrides), resolve=True)
    (run / "config.yaml").write_text(text)
    if results is not None:
        (run / "summary.json").write_text(json.dumps(results))
    return run


def find(folder: Path, *overrides: str) -> dict | None:
    return finished_run(configuration(folder, *overrides))


def test_the_same_settings(tmp_path, capsys):
    run = write_run(tmp_path, 7, "lambda_l0=3", "optimizer.lr=1e-5", "seed=5")
    assert find(tmp_path, "seed=5", "optimizer.lr=0.00001", "lambda_l0=3.0") == RESULTS
    assert capsys.readouterr().out.splitlines() == [
        f"skipped: {run} is finished and has the same settings"
    ]


@pytest.mark.parametrize(
    "other", ["seed=6", "data.batch_size=65", "optimizer=sgd", "trainer.precision=bf16-mixed"]
)
def test_another_setting(other, tmp_path):
    write_run(tmp_path, 0, "seed=5")
    assert find(tmp_path, "seed=5", other) is None


@pytest.mark.parametrize(
    "other",
    [
        "skip_finished=true",
        "trainer.enable_progress_bar=false",
        "trainer.log_every_n_steps=3",
        "logger=all",
    ],
)
def test_settings_that_leave_the_result_as_it_is(other, tmp_path):
    write_run(tmp_path, 0)
    assert find(tmp_path, other) == RESULTS


def test_a_run_of_a_version_with_other_modules(tmp_path):
    """Classes have moved since: the schedules into sparsereg.training, torch's too one day."""
    run = write_run(tmp_path, 0)
    text = (run / "config.yaml").read_text()
    assert "_target_: sparsereg." in text and "_target_: torch.optim." in text
    moved = text.replace("_target_: sparsereg.", "_target_: sparsereg.older.")
    moved = moved.replace("_target_: torch.optim.", "_target_: torch.older.")
    (run / "config.yaml").write_text(moved)
    assert find(tmp_path) == RESULTS
    assert find(tmp_path, "optimizer=sgd") is None


@pytest.mark.parametrize(
    "model, missing", [("googlenet", "gate_stem"), ("resnet20", "behind_barriers")]
)
def test_a_run_of_a_version_without_some_gates(model, missing, tmp_path):
    newer = f"model.{missing}="
    path = write_run(tmp_path, 0, f"model={model}", f"{newer}false") / "config.yaml"
    config = OmegaConf.load(path)
    del config.model[missing]
    OmegaConf.save(config, path)
    assert find(tmp_path, f"model={model}", f"{newer}false") == RESULTS
    assert find(tmp_path, f"model={model}", f"{newer}true") is None


def test_unfinished_and_broken_runs_do_not_count(tmp_path):
    write_run(tmp_path, 0, results=None)
    (write_run(tmp_path, 1) / "config.yaml").unlink()
    (write_run(tmp_path, 2) / "config.yaml").write_text("seed: [")
    (write_run(tmp_path, 3) / "config.yaml").write_text("")
    (write_run(tmp_path, 4) / "summary.json").write_text('{"val_acc": 0.')
    assert find(tmp_path) is None


def test_a_resumed_run_counts_as_the_run_that_was_stopped(tmp_path):
    stopped = write_run(tmp_path, 0, "ckpt_path=start.ckpt", "seed=5", results=None)
    last = stopped / "checkpoints" / "last.ckpt"
    write_run(tmp_path, 1, f"ckpt_path={last}", "resume_training=true", "seed=5")
    assert find(tmp_path, "ckpt_path=start.ckpt", "seed=5") == RESULTS
    assert find(tmp_path, "ckpt_path=other.ckpt", "seed=5") is None


def test_finetuning_must_be_finished_too(tmp_path):
    """The cut network's training is a run of its own."""
    settings = ("finetune_epochs=2", "lambda_l0=20", "round_to=4")
    run = write_run(tmp_path, 0, *settings)
    assert find(tmp_path, *settings) is None
    cut = run / "checkpoints" / "last_compact_4" / "compact.pt"
    second = ("lambda_l0=20", "round_to=4", f"ckpt_path={cut}", "without_using_gate=true")
    write_run(tmp_path, 1, *second, "trainer.max_epochs=2", results={"val_acc": 0.8})
    assert find(tmp_path, *settings) == {"val_acc": 0.8}


def test_hundreds_of_runs_are_compared_in_seconds(tmp_path):
    text = (write_run(tmp_path, 0, "seed=1") / "config.yaml").read_text()
    for version in range(1, 300):
        run = tmp_path / "lightning_logs" / f"version_{version}"
        run.mkdir()
        (run / "config.yaml").write_text(text.replace("seed: 1", f"seed: {version + 1}"))
        (run / "summary.json").write_text(json.dumps(RESULTS))
    start = time.process_time()
    assert find(tmp_path, "seed=1000") is None
    assert time.process_time() - start < 2


def test_nothing_heavy_is_imported(tmp_path):
    write_run(tmp_path, 0)
    program = (
        "import runpy, sys\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
        "assert 'torch' not in sys.modules and 'pytorch_lightning' not in sys.modules"
    )
    arguments = ["data=digits", f"output_dir={tmp_path}", "skip_finished=true"]
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("skipped: "), result.stderr


def test_the_dense_network_to_compare_with(tmp_path):
    """The same settings but for gates; or the run whose weights a run starts with."""
    accuracies = RESULTS | {"test_acc": 0.8}
    dense = write_run(tmp_path, 0, "without_using_gate=true", "seed=5", results=accuracies)
    write_run(tmp_path, 1, "seed=5")
    for version, odd in ((2, None), (3, RESULTS), (4, accuracies | {"test_acc": "high"})):
        write_run(tmp_path, version, "without_using_gate=true", "seed=5", results=odd)
    gates = ("seed=5", "lambda_l0=20", "target_warmup=null", "droprate_init=0.05")
    assert dense_run(configuration(tmp_path, *gates)) == (dense, accuracies)
    assert dense_run(configuration(tmp_path, "seed=6")) is None
    assert dense_run(configuration(tmp_path, "seed=5", "without_using_gate=true")) is None
    start = f"ckpt_path={dense}/checkpoints/last.ckpt"
    elsewhere = configuration(tmp_path / "other", start, "seed=6", "optimizer=sgd")
    assert dense_run(elsewhere) == (dense, accuracies)
    other_data = configuration(tmp_path / "other", start, "data=cifar10")
    assert dense_run(other_data) is None
    gated = configuration(tmp_path, f"ckpt_path={tmp_path}/lightning_logs/version_1/checkpoints/a")
    assert dense_run(gated) is None
