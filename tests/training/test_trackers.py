"""Weights & Biases and MLflow, the real packages, offline."""

import csv
import importlib.util
import json
import os
import re

import pytest
from conftest import SMALL, assert_one_line, run_folder, run_process, summary


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that logs to all trackers, without a way out: every proxy is a closed port."""
    folder = tmp_path_factory.mktemp("tracked")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    arguments = (*SMALL, "lambda_l0=3.0", "logger=all", f"output_dir={folder}")
    result = run_process("train.py", *arguments, env={**os.environ, **nowhere})
    assert result.code == 0 and result.err == "", "nor a word that is not the user's to mend"
    return folder


@pytest.mark.slow
def test_csv_and_tensorboard_stay(tracked):
    names = {path.name.split(".")[0] for path in run_folder(tracked).iterdir()}
    assert names == {"checkpoints", "config", "events", "hparams", "metrics", "qz_loga", "summary"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_mlflow_has_settings_curves_and_results(tracked):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked}/mlflow.db")
    experiment = client.get_experiment_by_name("sparsereg")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "version_0"
    assert run.data.params["lambda_l0"] == "3.0" and run.data.params["optimizer/lr"] == "0.001"
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert len(losses) == 1, "a mean over the epoch"
    assert run.data.metrics["final/test_acc"] == pytest.approx(summary(tracked)["test_acc"])


def values(records: bytes, key: str) -> list:
    """Values of a key in wandb's protobuf records: after the key, field 16, a length, JSON."""
    starts = [m.end() for m in re.finditer(rf"{key}\x82\x01".encode("latin-1"), records)]
    return [json.loads(records[start + 1 : start + 1 + records[start]]) for start in starts]


@pytest.mark.slow
def test_wandb_has_settings_curves_and_results(tracked):
    [file] = tracked.glob("wandb/offline-run-*/*.wandb")
    records = file.read_bytes()
    assert values(records, "droprate_init")[0] == 0.5
    assert values(records, "optimizer")[0]["lr"] == 0.001
    with open(run_folder(tracked) / "metrics.csv") as curves:
        losses = {float(row["train_loss"]) for row in csv.DictReader(curves) if row["train_loss"]}
    assert len(losses) > 0 and set(values(records, "train_loss")) == losses
    assert values(records, "final/test_acc")[0] == summary(tracked)["test_acc"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package(name, command, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "sparsereg.commands.machine.find_spec",
        lambda n, *args: None if n == name else real(n, *args),
    )
    result = command("train.py", f"logger={name}", f"output_dir={tmp_path}")
    assert_one_line(result, f"logger={name} needs: pip install -r requirements-trackers.txt")
