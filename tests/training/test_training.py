"""The commands of the contract, on the digits."""

import json
import os
import shlex
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT,
    SHORT,
    SMALL,
    assert_one_line,
    assert_quiet,
    checkpoint_path,
    events,
    run_folder,
    run_here,
    run_process,
    summary,
)
from forked import FORKS
from omegaconf import OmegaConf
from PIL import Image

import sparsereg
from sparsereg.checkpoint import read_checkpoint
from sparsereg.model.basic_l0_blocks import prob_nonzero
from sparsereg.runs.folder import claim_version


@pytest.mark.slow
def test_contract(command, tmp_path):
    """No gates, resume, gates from scratch, new gates on trained weights, test: word for word."""
    short = (*SMALL, f"output_dir={tmp_path}")
    start = ("ckpt_path=null", "resume_training=false")
    dense = checkpoint_path(tmp_path, 0)
    runs = [
        (*start, "without_using_gate=true"),
        (f"ckpt_path={dense}", "resume_training=true", "without_using_gate=true"),
        (*start, "without_using_gate=false", "lambda_l0=1.0"),
        (
            f"ckpt_path={dense}",
            "resume_training=false",
            "without_using_gate=false",
            "lambda_l0=20.0",
            "droprate_init=0.05",
        ),
    ]
    for run in runs:
        resumed = "trainer.max_epochs=2" if "resume_training=true" in run else ""
        result = command("train.py", *short, *run, *filter(None, [resumed]))
        assert_quiet(result)
        assert "test accuracy" in result.out
    for version, gated in enumerate([False, False, True, True]):
        path = checkpoint_path(tmp_path, version)
        result = command("test.py", f"ckpt_path={path}")
        assert_quiet(result)
        assert str(path) in result.out and "57,080" in result.out
        assert ("L_C0" in result.out) == gated
    assert read_checkpoint(checkpoint_path(tmp_path, 1))["epoch"] == 1


@pytest.mark.slow
def test_pretrained_weights_get_new_gates(command, dense, lenet5, tmp_path):
    """θ comes from the checkpoint, the gates from droprate_init, whether it was gated or not."""
    for checkpoint in (dense, lenet5):
        weights = read_checkpoint(checkpoint)["state_dict"]
        name = checkpoint.stem
        result = command(
            "train.py",
            *SMALL,
            f"ckpt_path={checkpoint}",
            "droprate_init=0.05",
            "optimizer.lr=1e-12",
            f"output_dir={tmp_path / name}",
        )
        assert result.code == 0, result.err
        new = read_checkpoint(checkpoint_path(tmp_path / name))["state_dict"]
        key = "net.conv2.weight"
        torch.testing.assert_close(new[key], weights[key], rtol=1e-5, atol=1e-8)
        gates = torch.cat([new[key] for key in new if key.endswith("qz_loga")])
        assert prob_nonzero(gates).mean().item() == pytest.approx(0.9895, abs=5e-4)


@pytest.mark.slow
def test_what_a_run_leaves(command, tmp_path):
    result = command("train.py", *SHORT, "trainer.max_epochs=2", f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    folder = run_folder(tmp_path)
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert "lambda_l0: 0.5" in (folder / "config.yaml").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["checkpoint"].endswith("best.ckpt") and summary["params"] == 260_650
    assert (folder / "metrics.csv").exists()

    log = events(folder)
    scalars = set(log.Tags()["scalars"])
    assert scalars >= {
        *("train/loss", "train/ce", "train/acc", "L_C0", "gates/lambda_l0", "val/acc", "val/loss"),
        *("sparsity", "size/params", "size/macs", "train/samples/s"),
        *("train/lr-AdamW/weights", "train/lr-AdamW/gates"),
        *("open_channels/block1/1x1", "open_channels/block8/max", "results/test_acc"),
    }
    assert len([tag for tag in scalars if tag.startswith("open_channels/")]) == 32
    assert len(log.Tags()["histograms"]) == 32
    assert len(log.Histograms("qz_loga/block3/5x5")) == 2, "one histogram for each epoch"
    l_c0 = [event.value for event in log.Scalars("L_C0")]
    assert l_c0[0] == pytest.approx(0.8318, abs=1e-3) and l_c0[-1] < l_c0[0]
    assert [event.value for event in log.Scalars("gates/lambda_l0")] == [0.5] * 6, "each step"
    assert log.Scalars("results/test_acc")[0].value == pytest.approx(summary["test_acc"])
    loss, ce = (log.Scalars(tag)[0].value for tag in ("train/loss", "train/ce"))
    assert loss - ce == pytest.approx(0.5 * sum(l_c0[:3]) / 3, abs=1e-5)


def test_loss_weights(command, tmp_path):
    """lambda_l0=0 leaves the cross-entropy alone."""
    result = command("train.py", *SMALL, "lambda_l0=0", f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    log = events(run_folder(tmp_path))
    assert log.Scalars("train/loss")[0].value == log.Scalars("train/ce")[0].value


def claim_many(root: Path, ready, numbers) -> None:
    ready.wait()
    numbers.put([claim_version(root, OmegaConf.create({})) for _ in range(100)])


@pytest.mark.slow
def test_runs_started_together_get_their_own_folders(tmp_path):
    ready, numbers = FORKS.Barrier(2), FORKS.Queue()
    arguments = (tmp_path / "lightning_logs", ready, numbers)
    processes = [FORKS.Process(target=claim_many, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    claimed = [numbers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(chain(*claimed)) == list(range(200))
    assert max(claimed[0]) > min(claimed[1]) and max(claimed[1]) > min(claimed[0]), "in turns"


@pytest.mark.slow
def test_results_are_kept_before_they_are_printed(tmp_path, monkeypatch):
    """A terminal that is gone, or a bug in a table, loses nothing that was measured."""

    def fail(*_):
        raise BrokenPipeError

    monkeypatch.setattr("sparsereg.training.results.print_summary", fail)
    run_here("train.py", *SMALL, f"output_dir={tmp_path}")
    assert 0 <= summary(tmp_path)["test_acc"] <= 1


def test_load_in_one_line(trained):
    net = sparsereg.load(trained["gated"])
    images = torch.randn(2, 3, 16, 16)
    assert net(images).shape == (2, 10) and torch.equal(net(images), net(images))
    data = read_checkpoint(trained["gated"])["sparsereg"]["data"]
    assert data["classes"] == [str(digit) for digit in range(10)]
    assert len(data["mean"]) == len(data["std"]) == 3


@pytest.mark.slow
def test_multirun_runs_every_job_and_reports_the_failure(command, tmp_path):
    result = command(
        "train.py",
        "--multirun",
        *SMALL,
        "trainer.limit_val_batches=1",
        "droprate_init=0.5,2.0,0.4",
        f"output_dir={tmp_path}",
    )
    assert result.code == 1
    assert "error: droprate_init=2.0" in result.err and "Traceback" not in result.err
    assert "job 1 failed: " in result.err
    assert checkpoint_path(tmp_path, 1).exists(), "the job after the failed one has run"


@pytest.mark.slow
def test_distributed(tmp_path):
    """Two processes: different noise, the same weights, one set of metrics."""
    probe = "sparsereg_probe"
    (tmp_path / f"{probe}.py").write_text(
        "import torch, pytorch_lightning as pl\n"
        "class Probe(pl.Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, batch_idx):\n"
        "        self.state = torch.get_rng_state()\n"
        "    def on_train_end(self, trainer, module):\n"
        "        net = {k: v.clone() for k, v in module.net.named_parameters()}\n"
        "        torch.save({'noise': self.state, 'net': net},\n"
        f"                   f'{tmp_path}/rank{{trainer.global_rank}}.pt')\n"
    )
    result = run_process(
        "train.py",
        "data=digits",
        "model=lenet5",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=3",
        "callbacks.throughput._target_=sparsereg_probe.Probe",
        f"output_dir={tmp_path}",
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert result.code == 0, result.err
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert not torch.equal(first["noise"], second["noise"])
    for name, parameter in first["net"].items():
        assert torch.equal(parameter, second["net"][name]), name
    assert [p.name for p in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert len(events(run_folder(tmp_path)).Scalars("val/acc")) == 1
    assert result.out.count("test accuracy") == 1
    assert "sync_dist" not in result.err
    assert read_checkpoint(checkpoint_path(tmp_path))["global_step"] == 3


@pytest.mark.slow
def test_test_from_another_folder(command, monkeypatch, tmp_path):
    """A checkpoint does not say what is opened; the line names what to add, of any name."""
    images = tmp_path / "it's [my] images=1"
    for part in ("train", "test"):
        for name in "ab":
            (images / part / name).mkdir(parents=True)
            for i in range(8):
                image = Image.new("RGB", (20, 20), (30 * i, 0, 0))
                image.save(images / part / name / f"{i}.png")
    arguments = [*SMALL, "data=image_folder", "data.batch_size=4"]
    arguments.append("data.root='it\\'s [my] images=1'")
    monkeypatch.chdir(tmp_path)
    result = command("train.py", *arguments, "output_dir=out")
    assert result.code == 0, result.err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    test = ("test.py", f"ckpt_path={checkpoint_path(tmp_path / 'out')}", "trainer=cpu")
    refused = command(*test)
    assert_one_line(refused, f'data.root="{tmp_path}', "add that")
    [what_to_add] = shlex.split(refused.err.partition(" had ")[2].partition(", and a file")[0])
    result = command(*test, what_to_add)
    assert result.code == 0, result.err


def test_accuracies_are_those_of_float32(monkeypatch):
    """What a run in bfloat16 says of its network is what test.py says, anywhere."""
    from sparsereg.training.module import L0Module

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    module = L0Module(net, 3, None, None)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **how: logged.update({name: value}))
    images, labels = torch.randn(8, 3, 2, 2), torch.arange(8) % 3
    with torch.autocast("cpu", torch.bfloat16):
        module.test_step((images, labels), 0)
    exact = torch.nn.functional.cross_entropy(net(images), labels)
    assert logged["test_loss"].dtype == torch.float32 and torch.equal(logged["test_loss"], exact)
