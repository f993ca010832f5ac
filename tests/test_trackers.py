"""Weights & Biases and MLflow, the real packages, offline."""

import importlib.util
import json
import os

import pytest
from conftest import SHORT, assert_one_line, run_folder, run_process, summary


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that logs to all trackers, without a way out: every proxy is a closed port."""
    folder = tmp_path_factory.mktemp("tracked")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    arguments = (*SHORT, "lambda_l0=3.0", "logger=all", f"output_dir={folder}")
    result = run_process("train.py", *arguments, env={**os.environ, **nowhere})
    assert result.code == 0, result.err
    return folder


def test_csv_and_tensorboard_stay(tracked):
    names = {path.name.split(".")[0] for path in run_folder(tracked).iterdir()}
    assert names == {"checkpoints", "config", "events", "hparams", "metrics", "summary"}


def test_mlflow_has_settings_curves_and_results(tracked):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked}/mlflow.db")
    experiment = client.get_experiment_by_name("sparsereg")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "version_0"
    assert run.data.params["lambda_l0"] == "3.0" and run.data.params["optimizer/lr"] == "0.001"
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [metric.step for metric in losses] == [0, 1, 2]
    assert run.data.metrics["final/test_acc"] == pytest.approx(summary(tracked)["test_acc"])


def test_wandb_has_settings_curves_and_results(tracked):
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    [file] = tracked.glob("wandb/offline-run-*/*.wandb")
    store = DataStore()
    store.open_for_scan(str(file))
    records = []
    while (data := store.scan_data()) is not None:
        records.append(wandb_internal_pb2.Record.FromString(data))
    settings = {}
    for record in records:
        for update in (*record.run.config.update, *record.config.update):
            settings[update.key] = json.loads(update.value_json)
    assert settings["lambda_l0"] == 3.0 and settings["optimizer"]["lr"] == 0.001
    logged = {}
    for record in records:
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            logged.setdefault(key, []).append(json.loads(item.value_json))
    assert len(logged["train_loss"]) == 3
    assert logged["final/test_acc"] == [pytest.approx(summary(tracked)["test_acc"])]
    assert any(record.HasField("exit") for record in records), "the run is closed"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package(name, command, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "sparsereg.settings.find_spec", lambda n, *args: None if n == name else real(n, *args)
    )
    result = command("train.py", f"logger={name}", f"output_dir={tmp_path}")
    assert_one_line(result, f"logger={name} needs: pip install -r requirements-trackers.txt")
