"""Reading run folders and records: what is there, what is not, and why."""

import json
import time

import pytest
from run_folders import SUMMARY, make_latency, make_run

from sparsereg.commands.comparable import reported_settings
from sparsereg.errors import UserError
from sparsereg.runs.find import find_runs
from sparsereg.runs.records import write_records


def found(*roots) -> dict:
    return {run.name: run for run in find_runs([str(root) for root in roots])}


def test_runs_are_found_below_several_folders_in_the_order_of_their_numbers(tmp_path):
    for version in (10, 9, 0):
        make_run(tmp_path / "a" / "lightning_logs" / f"version_{version}", train_seconds=version)
    make_run(tmp_path / "b" / "deep" / "lightning_logs" / "version_0", train_seconds=3)
    runs = found(tmp_path / "a", tmp_path / "b")
    assert list(runs) == ["version_0", "version_9", "version_10", "deep/version_0"]
    assert list(found(tmp_path / "a" / "lightning_logs" / "version_9")) == ["version_9"]


def test_a_run_met_twice_counts_once(tmp_path):
    make_run(tmp_path / "a" / "version_0")
    (tmp_path / "a" / "version_1").mkdir()
    (tmp_path / "a" / "version_1" / "metrics.csv").touch()  # broken: no settings
    runs = find_runs([str(tmp_path / "a")])
    write_records(runs, tmp_path / "a" / "record.csv")
    both = find_runs([str(tmp_path), str(tmp_path / "a")])
    assert sorted(run.status for run in both) == ["broken", "finished"]
    assert all(run.folder is not None for run in both), "the folder has the curves"


def test_results_and_latency(tmp_path):
    make_latency(make_run(tmp_path / "version_0"))
    run = found(tmp_path)["version_0"]
    assert run.status == "finished" and run.why == ""
    assert run.results["test_acc"] == 0.89 and run.results["checkpoint"] == "outputs/best.ckpt"
    assert (run.results["ms_batch_1"], run.results["speedup_batch_128"]) == (6.64, 1.46)


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    folder = make_run(tmp_path / "version_0")
    (folder / "summary.json").unlink()
    assert "no checkpoint" in found(tmp_path)["version_0"].why
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    run = found(tmp_path)["version_0"]
    assert run.status == "unfinished" and not run.results
    assert f"ckpt_path={folder}/checkpoints/last.ckpt resume_training=true" in run.why


@pytest.mark.parametrize(
    "file, content, why",
    [
        ("config.yaml", "a: [", "config.yaml: while parsing"),
        ("config.yaml", "", "config.yaml: holds no settings"),
        ("config.yaml", None, "config.yaml: No such file"),
        ("summary.json", '{"val_acc": 0.9', "summary.json: Expecting"),
        ("summary.json", "[]", "summary.json: holds no table"),
        ("summary.json", '{"val_acc": 0.9}', "no number for test_acc, sparsity, params, macs"),
    ],
)
def test_a_broken_run_is_named_and_disturbs_no_other(tmp_path, file, content, why):
    path = make_run(tmp_path / "version_0") / file
    path.write_text(content) if content is not None else path.unlink()
    make_run(tmp_path / "version_1")
    runs = found(tmp_path)
    assert runs["version_1"].status == "finished"
    assert runs["version_0"].status == "broken"
    assert why in runs["version_0"].why and "\n" not in runs["version_0"].why


def test_a_damaged_latency_report_costs_the_latency_alone(tmp_path):
    make_latency(make_run(tmp_path / "version_0"), "{}")
    run = found(tmp_path)["version_0"]
    assert run.status == "finished" and "ms_batch_1" not in run.results
    assert run.why.startswith("no latency: checkpoints/best_compact/report.json")


@pytest.mark.parametrize("of", ["best", "last"])
def test_the_latency_is_that_of_the_checkpoint_of_the_results(tmp_path, of):
    run = make_run(tmp_path / "version_0", checkpoint=f"checkpoints/{of}.ckpt")
    make_latency(run, of="last")
    assert ("ms_batch_1" in found(tmp_path)["version_0"].results) == (of == "last")


def test_settings_that_make_no_difference_are_left_out(tmp_path):
    make_run(tmp_path / "version_0", {"lambda_l0": 1.0})
    assert found(tmp_path)["version_0"].settings == {
        "lambda_l0": 1.0,
        "droprate_init": 0.5,
        "target_sparsity": None,
        "seed": 1,
        "data": "Cifar",
        "data.name": "cifar10",
        "model": "GoogleNet",
        "optimizer": "AdamW",
        "optimizer.lr": 0.001,
        "trainer.max_epochs": 180,
        "start": "scratch",
        "callbacks.average_weights.decay": None,
    }


def test_averaging_counts_and_each_seed_may_have_its_own_teacher():
    averaged = {"callbacks": {"average_weights": {"decay": 0.99}}}
    one, other = (
        reported_settings(averaged | {"loss": {"teacher": f"{seed}/best.ckpt"}}) for seed in (1, 2)
    )
    assert one == other and one["loss.teacher"] == "yes"
    assert one["callbacks.average_weights.decay"] == 0.99
    plain = reported_settings({"callbacks": {}, "loss": {"teacher": None}})
    assert plain["loss.teacher"] is None is plain["callbacks.average_weights.decay"]


def test_settings_without_meaning_are_left_out():
    gates = {"droprate_init": 0.5, "lambda_l0": 0.5, "target_sparsity": None}
    assert reported_settings({"without_using_gate": True, **gates}) == {
        "lambda_l0": "no gates",
        "start": "scratch",
    }
    target = {"target_sparsity": 0.6, "lambda_l0": 0.5, "ckpt_path": "a/last.ckpt"}
    settings = {"target_sparsity": 0.6, "lambda_l0": None, "start": "trained"}
    assert reported_settings(target) == settings
    assert reported_settings({"ckpt_path": "a/compact.pt"}) == {"start": "cut"}
    own = {"droprate_init": 0.5, "model": {"droprate_init": 0.1}}
    assert reported_settings(own)["model.droprate_init"] == 0.1, "not what the flat key says"


def test_a_resumed_run_has_the_start_of_its_first_part(tmp_path):
    """However often it was resumed; and it is said if the first part is gone."""
    parts = [tmp_path / f"version_{i}" for i in range(3)]
    checkpoints = ["dense/last.ckpt", *(f"{part}/checkpoints/last.ckpt" for part in parts)]
    for i, part in enumerate(parts):
        make_run(part, {"ckpt_path": checkpoints[i], "resume_training": i > 0}, train_seconds=i)
    gone = {"ckpt_path": "gone/version_0/checkpoints/last.ckpt", "resume_training": True}
    make_run(tmp_path / "version_3", gone)
    starts = [run.settings["start"] for run in found(tmp_path).values()]
    assert starts == ["trained", "trained", "trained", "resumed"]


def test_a_record_reads_as_the_runs_it_was_made_of(tmp_path):
    scheduler = {"milestones": [100, 150], "_target_": "sparsereg.training.schedules.multistep"}
    make_run(tmp_path / "runs" / "a", {"lambda_l0": 1.0 / 3, "note": None})
    make_latency(make_run(tmp_path / "runs" / "b, c", {"optimizer": {"lr": 1e-5}}, test_acc=2 / 3))
    make_run(tmp_path / "runs" / "d", {"without_using_gate": True}, L_C0=None)
    runs = find_runs([str(tmp_path / "runs")])
    runs[0].settings |= reported_settings({"scheduler": scheduler, "flip": True})
    write_records(runs, tmp_path / "record.csv")
    read = found(tmp_path / "record.csv")
    assert list(read) == ["a", "b, c", "d"]
    for run in runs:
        assert (read[run.name].settings, read[run.name].results) == (run.settings, run.results)


def test_a_damaged_record_is_broken_and_another_csv_is_none(tmp_path):
    make_run(tmp_path / "version_0")
    (tmp_path / "prices.csv").write_text("fruit,price\napple,3\n")
    write_records(find_runs([str(tmp_path)]), tmp_path / "record.csv")
    record = (tmp_path / "record.csv").read_text()
    (tmp_path / "record.csv").write_text(record.replace("0.89", "high"))
    assert "test_acc is not a number: 'high'" in found(tmp_path)["record.csv"].why
    (tmp_path / "record.csv").write_text(record[:-40])
    assert "line 2 has too few" in found(tmp_path)["record.csv"].why


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="there is no run in it"):
        find_runs([str(tmp_path)])
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        find_runs([str(tmp_path / "nowhere")])


@pytest.mark.slow
def test_three_hundred_runs_are_read_in_seconds(tmp_path):
    """With configurations as long as the real ones."""
    callbacks = {f"callback_{i}": {"_target_": "a.b", "key": [i, 2, 3]} for i in range(40)}
    for i in range(300):
        config = {"seed": i, "callbacks": callbacks}
        make_run(tmp_path / f"version_{i}", config, **SUMMARY | {"train_seconds": i})
    start = time.process_time()
    runs = find_runs([str(tmp_path)])
    assert len(runs) == 300 and time.process_time() - start < 5
    assert json.dumps([run.settings["seed"] for run in runs]) == json.dumps(list(range(300)))
