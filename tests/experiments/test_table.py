"""What experiments/table.py trains: every command is one that train.py takes, rows start from each
other, nothing is trained twice and what was stopped goes on. The training itself is replaced."""

import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments import resumable, table
from sparsereg.commands.checks import check_settings
from sparsereg.commands.overrides import CONFIG


@pytest.fixture
def trained(tmp_path, monkeypatch) -> dict[str, list[str]]:
    """The settings of each run that was started, by folder; runs leave what a finished one does."""
    started: dict[str, list[str]] = {}

    def run(command, **options) -> subprocess.CompletedProcess:
        settings = command[2:]
        folder = next(s.partition("=")[2] for s in settings if s.startswith("output_dir="))
        if "trainer.limit_train_batches=24" not in settings:
            started[folder.removeprefix("outputs/table/")] = settings
        if any("random_params_0.64" in setting for setting in settings):
            return subprocess.CompletedProcess(command, 1, "", "some warning\nerror: no luck\n")
        version = leave(tmp_path / folder, "best", "last")
        (version / "summary.json").touch()
        (version / "metrics.csv").write_text("step,samples/s\n1,\n2,450\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    def cut_network(path: Path) -> Path:
        return path.with_name("best_compact") / "compact.pt"

    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(resumable, "ROOT", tmp_path)
    monkeypatch.setattr(table, "cut_network", cut_network)
    monkeypatch.setattr(table, "cut_peer", lambda *settings: None)
    monkeypatch.setattr(resumable.subprocess, "run", run)
    monkeypatch.setattr("sparsereg.commands.checks.check_checkpoint_file", lambda *names: None)
    return started


def leave(folder: Path, *names: str) -> Path:
    """What a run leaves: the next version_N, with these checkpoints."""
    runs = folder / "lightning_logs"
    version = runs / f"version_{len(list(runs.glob('*')))}"
    (version / "checkpoints").mkdir(parents=True)
    for name in names:
        (version / "checkpoints" / f"{name}.ckpt").touch()
    return version


@pytest.mark.slow
@pytest.mark.parametrize("schedule", table.SCHEDULES)
def test_every_row_is_a_run(trained, schedule, capsys):
    assert table.main([schedule, "--seeds", "7", "8", "--", "data=digits"]) == 1
    assert "error: random_params_0.64, seed 7: error: no luck\n" in capsys.readouterr().err
    gates = len(table.SIZES) + 2
    assert len(trained) == len(table.ROWS) + len(table.MORE_SEEDS) + gates
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        for folder, overrides in trained.items():
            if folder.endswith("seed_8") and not folder.endswith("dense/seed_8"):
                continue  # composed as seed 7 is, which takes seconds
            cfg = compose("train", overrides=overrides)
            check_settings(cfg, overrides)
            assert f"seed_{cfg.seed}" == Path(folder).name and "Digits" in cfg.data._target_


def test_rows_start_from_their_own_seed(trained):
    assert table.main(["cpu", "params_0.64", "magnitude_macs_0.5", "--seeds", "5"]) == 0
    rows = {name.removesuffix("/seed_5"): settings for name, settings in trained.items()}
    assert [*rows] == [
        f"cpu/{n}" for n in ("dense", "gates_params_0.64", "params_0.64", "magnitude_macs_0.5")
    ]
    start = "outputs/table/cpu/{}/seed_5/lightning_logs/version_0/checkpoints/{}".format
    dense = start("dense", "best.ckpt")
    gates = {f"ckpt_path={dense}", f"loss.teacher={dense}", "cost=params", "target_sparsity=0.64"}
    assert gates <= set(rows["cpu/gates_params_0.64"])
    cut = start("gates_params_0.64", "best_compact/compact.pt")
    assert {f"ckpt_path={cut}", f"loss.teacher={dense}"} <= set(rows["cpu/params_0.64"])
    peer = "ckpt_path=outputs/table/cpu/magnitude_macs_0.5/seed_5/compact.pt"
    assert {peer, f"loss.teacher={dense}"} <= set(rows["cpu/magnitude_macs_0.5"])
    for row in ("cpu/params_0.64", "cpu/magnitude_macs_0.5"):
        assert "optimizer.lr=0.05" in rows[row], "no way of choosing has another rate"


def test_rows_start_from_a_network_that_is_given(trained):
    dense = "models/googlenet_dense.pt"
    rows = ["params_0.64", "magnitude_params_0.64"]
    assert table.main(["cpu", *rows, "--seeds", "5", "--start", dense]) == 0
    assert [*trained] == [f"cpu/{name}/seed_5" for name in ("gates_params_0.64", *rows)]
    assert all(f"loss.teacher={dense}" in settings for settings in trained.values())
    assert f"ckpt_path={dense}" in trained["cpu/gates_params_0.64/seed_5"]


def test_a_network_that_is_given_is_not_trained(trained, capsys):
    with pytest.raises(SystemExit, match="2"):
        table.main(["cpu", "dense", "--start", "models/googlenet_dense.pt"])
    assert "leave one of them out" in capsys.readouterr().err and not trained


def test_all_have_the_same_epochs_after_the_dense_network(trained):
    table.main(["cpu", "params_0.64", "magnitude_params_0.64", "--seeds", "5"])
    epochs = {
        name.split("/")[1]: int(setting.partition("=")[2])
        for name, settings in trained.items()
        for setting in settings
        if setting.startswith("trainer.max_epochs=")
    }
    gates_and_rest = epochs["gates_params_0.64"] + epochs["params_0.64"]
    assert gates_and_rest == epochs["magnitude_params_0.64"] == 40


def test_finished_rows_stay_and_stopped_ones_go_on(trained, tmp_path, capsys):
    folder = tmp_path / "outputs/table/cpu/dense/seed_1"
    leave(folder, "best", "last"), leave(folder, "last"), leave(folder)
    assert table.main(["cpu", "dense", "--seeds", "1"]) == 0
    last = "outputs/table/cpu/dense/seed_1/lightning_logs/version_1/checkpoints/last.ckpt"
    settings = {f"ckpt_path={last}", "resume_training=true"}
    assert settings <= set(trained.pop("cpu/dense/seed_1")), "the newest that has a checkpoint"
    assert "1 of 1 rows to train: 1.1 hours" in capsys.readouterr().out, "40 · 45,000 / 450 s"
    assert table.main(["cpu", "dense", "--seeds", "1"]) == 0
    assert not trained


def test_a_stopped_row_is_told_its_teacher_and_its_data_again(trained, tmp_path):
    leave(tmp_path / "outputs/table/cpu/gates_params_0.64/seed_1", "last")
    assert table.main(["cpu", "params_0.64", "--seeds", "1", "--", "data.root=elsewhere"]) == 0
    settings = trained["cpu/gates_params_0.64/seed_1"]
    assert "resume_training=true" in settings and "target_sparsity=0.64" not in settings
    dense = "outputs/table/cpu/dense/seed_1/lightning_logs/version_0/checkpoints/best.ckpt"
    assert {f"loss.teacher={dense}", "data.root=elsewhere"} <= set(settings)


def test_the_telling_rows_come_first():
    rows = table.plan([], [1, 2, 3])
    assert rows[:6] == [("dense", 1), *((size, 1) for size in table.SIZES)]
    assert rows[6:10] == [
        (f"{peer}_{size}", 1)
        for size in ("params_0.64", "params_0.815")
        for peer in ("magnitude", "random")
    ]
    assert rows[-3:] == [(row, 1) for row in table.SCRATCH]
    assert len(set(rows)) == len(rows) == len(table.ROWS) + 2 * len(table.MORE_SEEDS)


def test_an_unknown_row(capsys):
    with pytest.raises(SystemExit):
        table.main(["cpu", "params_0.99"])
    assert "params_0.99" in capsys.readouterr().err
