"""The accuracy that must stay."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import pytorch_lightning as pl
import torch
from conftest import SMALL, TEACHABLE, assert_one_line, run_here

from sparsereg.budgets.max_drop import Trial, candidates, next_target
from sparsereg.budgets.paired import Drop, paired_drop
from sparsereg.checkpoint import load, read_checkpoint
from sparsereg.sparsity.size import measure
from sparsereg.training.results import evaluate

SEARCH = ("cost=params", "droprate_init=0.05", "trainer.max_epochs=2", "probes=2")


def trial(target: float, bound: float) -> Trial:
    return Trial(target, "probe", Drop(0.0, bound), Path(), {})


def test_the_bound_of_a_paired_difference():
    """By hand: of 400 images 10 are lost and 4 won."""
    before, after = torch.zeros(400), torch.zeros(400)
    before[:300], after[10:304] = 1, 1
    after[4:10] = 0
    drop, bound = paired_drop(before, after)
    lost, won = int(((before == 1) & (after == 0)).sum()), int(((before == 0) & (after == 1)).sum())
    mean = (lost - won) / 400
    error = math.sqrt(((lost + won) / 400 - mean**2) / 400)
    assert (lost, won) == (10, 4) and drop == pytest.approx(1.5)
    assert bound == pytest.approx(100 * (mean + 1.645 * error))
    assert paired_drop(before, before) == (0, 0)


def test_the_bound_holds_in_nineteen_of_twenty_cases():
    """Networks that lose 4 % of the images and win 2 %, on 1000 images, many times."""
    chance = torch.rand(2000, 1000, generator=torch.Generator().manual_seed(0))
    lost, won = chance < 0.04, chance > 0.98
    difference = (won.double(), lost.double())  # right before is not lost; only d counts
    bounds = torch.tensor([paired_drop(b, a).bound for a, b in zip(*difference, strict=True)])
    assert (bounds >= 2).double().mean().item() == pytest.approx(0.95, abs=0.015)


def test_bisection():
    assert next_target([], 1, 0.9) == 0.45
    assert next_target([trial(0.45, 0.2)], 1, 0.9) == 0.675
    assert next_target([trial(0.45, 0.2), trial(0.675, 3)], 1, 0.9) == 0.5625
    assert next_target([trial(0.45, 3)], 1, 0.9) == 0.225


def test_one_probe_that_happens_to_fail_does_not_end_the_search():
    """The fit is monotone: a lower sparsity that is hardly worse than a higher one is kept."""
    probes = [trial(0.4, 1.1), trial(0.6, 0.7), trial(0.8, 4)]
    assert next_target(probes, 1, 0.9) == 0.7
    assert candidates(probes, 1) == [0.6, 0.4]


def test_if_none_is_kept_the_nearest_is_trained():
    assert candidates([trial(0.4, 2), trial(0.2, 1.5)], 1) == [0.2]


@pytest.fixture(scope="module")
def found(dense, tmp_path_factory) -> SimpleNamespace:
    """One search, in which the test set is watched, killed in the middle and started again."""
    folder, tested, fits = tmp_path_factory.mktemp("search"), [], []
    settings = (*TEACHABLE, *SEARCH, "max_drop=9", f"ckpt_path={dense}", f"output_dir={folder}")
    fit = pl.Trainer.fit

    def interrupted(self, *arguments, **options):
        fits.append(options["ckpt_path"])
        fit(self, *arguments, **options)
        if len(fits) == 2:  # between the last epoch and the results
            raise KeyboardInterrupt

    with patch.object(pl.Trainer, "test", lambda *_, **__: tested.append(1)):
        with patch.object(pl.Trainer, "fit", interrupted), pytest.raises(KeyboardInterrupt):
            run_here("train.py", *settings)
        with patch.object(pl.Trainer, "fit", interrupted):
            code = run_here("train.py", *settings)
    results = json.loads((folder / "max_drop.json").read_text())
    return SimpleNamespace(
        code=code, folder=folder, settings=settings, tested=tested, fits=fits, results=results
    )


@pytest.mark.slow
def test_the_search_goes_on_and_reads_the_test_set_once(found):
    assert found.code == 0 and not found.tested
    first, second, again, full = found.fits
    assert first is second is full is None
    assert again == found.folder / "lightning_logs/version_1/checkpoints/last.ckpt"
    kinds = [trial["kind"] for trial in found.results["trials"]]
    assert kinds[:2] == ["probe", "probe"] and kinds[2:] == ["full"]


@pytest.mark.slow
def test_what_was_found_is_what_is_said(found, dense):
    chosen = found.results["chosen"]
    config = read_checkpoint(chosen["checkpoint"])["sparsereg"]["config"]
    assert config["loss"]["teacher"] == config["ckpt_path"] == str(dense)
    assert config["target_sparsity"] == found.results["target"] and config["max_drop"] is None
    net = load(chosen["checkpoint"])
    assert measure(net, (3, 16, 16))["params"] == chosen["params"]
    full = found.results["trials"][-1]["drop"]
    assert full == {"drop": found.results["drop"], "bound": found.results["bound"]}
    assert chosen["test_acc"] is not None


@pytest.mark.slow
def test_started_again_it_only_says_so(command, found):
    result = command("train.py", *found.settings)
    assert result.code == 0 and "epoch" not in result.out.split("probe:")[0]
    *_, size, drop = result.out.splitlines()
    assert size.startswith("sparsity ") and f"{found.results['chosen']['params']:,}" in size
    assert f"drop {found.results['drop']:.2f} points" in drop and "test: drop" in drop


@pytest.mark.slow
def test_no_size_keeps_it(command, dense, tmp_path):
    settings = ("max_drop=0", "probes=1", "cost=params", "droprate_init=0.9")
    more = ("trainer.max_epochs=1", f"ckpt_path={dense}", f"output_dir={tmp_path}")
    result = command("train.py", *SMALL, *settings, *more)
    assert result.code == 0, result.err
    assert "no size keeps max_drop=0 with 95 % confidence" in result.out
    assert "to go on:" not in result.out  # after each of its runs
    assert "180 validation images are few" in result.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("max_drop=0.5",), ["max_drop=0.5 needs ckpt_path"]),
        (("max_drop=0",), ["max_drop=0 needs ckpt_path"]),
        (
            ("max_drop=0", "ckpt_path={dense}", "without_using_gate=true"),
            ["max_drop=0 needs gates"],
        ),
        (("max_drop=101",), ["max_drop=101", "below 100"]),
        (("max_drop=1", "target_sparsity=0.5"), ["max_drop=1", "ask for one"]),
        (("max_drop=1", "ckpt_path={dense}", "cost=latency"), ["max_drop=1", "cost=latency"]),
        (("max_drop=1", "ckpt_path={dense}", "trainer.devices=2"), ["one process"]),
        (("max_drop=1", "ckpt_path={other}"), ["classes 0, 1 and 8 more", "0, 1 and 7 more"]),
        (("max_drop=1", "ckpt_path={dense}", "data.image_size=32"), ["(3, 32, 32)", "(3, 16, 16)"]),
        (("probes=3",), ["probes=3", "needs max_drop"]),
        (("max_drop=1", "probes=0", "ckpt_path={dense}"), ["probes=0", "at least 1"]),
        (("target_sparsity=[0.5,0.3]",), ["target_sparsity=[0.5, 0.3]", "rise"]),
        (
            ("target_sparsity=[0.3,0.9999]", "cost=params"),
            ["target_sparsity=0.9999", "out of reach"],
        ),
        (("target_sparsity=[0.5]",), ["target_sparsity=[0.5]", "rise"]),
        (("target_sparsity=[0.5,0.9]", "settle_epochs=2"), ["last 2 epochs", "max_epochs=1"]),
    ],
)
def test_mistakes(command, dense, tmp_path, arguments, words):
    other = torch.load(dense, weights_only=True)
    other["sparsereg"]["data"]["classes"] = [*map(str, range(9))]
    torch.save(other, tmp_path / "other.ckpt")
    names = {"dense": dense, "other": tmp_path / "other.ckpt"}
    out = tmp_path / "out"
    given = (argument.format(**names) for argument in arguments)
    result = command("train.py", *SMALL, *given, f"output_dir={out}")
    assert_one_line(result, *words)
    assert not out.exists()


def test_a_network_can_be_evaluated_without_the_test_set():
    trainer = SimpleNamespace(
        loggers=[], validate=lambda *_, **__: [{"val_acc": 0.5}], test=lambda: pytest.fail("read")
    )
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    module = SimpleNamespace(net=net, objective=None)
    data = SimpleNamespace(image_shape=(3, 2, 2))
    assert evaluate(trainer, module, data, Path("x"), test=False)["test_acc"] is None
