"""What experiments/table.py trains: every command is one that train.py takes, rows start from each
other, and nothing is trained twice. The training itself is replaced."""

import json
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments import table
from sparsereg.commands.checks import check_settings
from sparsereg.commands.overrides import CONFIG


@pytest.fixture
def trained(tmp_path, monkeypatch) -> dict[str, list[str]]:
    """The settings of each run that was started, by folder; runs leave what a finished one does."""
    started: dict[str, list[str]] = {}

    def run(command, **options) -> subprocess.CompletedProcess:
        settings = command[2:]
        folder = next(s.partition("=")[2] for s in settings if s.startswith("output_dir="))
        started[folder.removeprefix("outputs/table/")] = settings
        if any("lambda_l0=30" in setting for setting in settings):
            return subprocess.CompletedProcess(command, 1, "", "error: no luck")
        version = tmp_path / folder / "lightning_logs/version_0"
        (version / "checkpoints").mkdir(parents=True)
        (version / "checkpoints/best.ckpt").touch(), (version / "checkpoints/last.ckpt").touch()
        (version / "summary.json").write_text(json.dumps({"test_acc": 0.5}))
        return subprocess.CompletedProcess(command, 0, "", "")

    def cut_network(path: Path) -> Path:
        return path.with_name("best_compact") / "compact.pt"

    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "cut_network", cut_network)
    monkeypatch.setattr(table.subprocess, "run", run)
    monkeypatch.setattr("sparsereg.commands.checks.check_checkpoint_file", lambda *names: None)
    return started


@pytest.mark.parametrize("schedule", table.SCHEDULES)
def test_every_row_is_a_run(trained, schedule):
    arguments = ["published", "modern", "ablation", "--seeds", "1", "--jobs", "3"]
    settings = ["--schedule", schedule, "--sparsities", "0.39", "--", "data=digits"]
    assert table.main([*arguments, *settings]) == 1  # because of λ = 30
    assert len(trained) == (8 + 1 + 2 + len(table.VARIANTS))
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        for folder, overrides in trained.items():
            cfg = compose("train", overrides=overrides)
            check_settings(cfg, overrides)
            assert f"seed_{cfg.seed}" == Path(folder).name and "Digits" in cfg.data._target_


def test_rows_start_from_their_own_seed_and_finished_ones_stay(trained, capsys):
    assert table.main(["published", "modern", "--seeds", "5"]) == 1
    assert capsys.readouterr().err.count("no luck") == 1
    start = "ckpt_path=outputs/table/full/{}/seed_5/lightning_logs/version_0/checkpoints/{}"
    rows = {folder.removeprefix("full/"): settings for folder, settings in trained.items()}
    dense = start.format("published/no_l0", "last.ckpt")
    assert dense in rows["published/finetune_l0_20/seed_5"]
    assert start.format("modern/dense", "best.ckpt") in rows["modern/gates_0.39/seed_5"]
    cut = start.format("modern/gates_0.39", "best_compact/compact.pt")
    assert cut in rows["modern/cut_0.39/seed_5"]
    trained.clear()
    assert table.main(["published", "modern", "--seeds", "5"]) == 1
    assert list(trained) == ["full/published/finetune_l0_30/seed_5"]  # the one that failed


def test_the_rows_of_a_network_that_fails_fail_with_it(trained, capsys, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "error: no data")
    monkeypatch.setattr(table.subprocess, "run", lambda *args, **options: failed)
    assert table.main(["modern", "--seeds", "1"]) == 1
    assert capsys.readouterr().err.count("no data") == 1 and not trained
