"""The average of the weights against one computed by hand, and what it leaves alone."""

import pytest
import pytorch_lightning as pl
import torch
from conftest import QUIET, SMALL, checkpoint_path, run_folder, summary
from torch.optim.swa_utils import AveragedModel

from sparsereg.checkpoint import read_checkpoint
from sparsereg.data import Digits
from sparsereg.model.googlenet import GoogleNet
from sparsereg.model.layers import ChannelSelect
from sparsereg.runs.pictures import read_csv
from sparsereg.sparsity.objective import L0Penalty
from sparsereg.training.averaging import AverageWeights
from sparsereg.training.module import L0Module

STEPS, DECAY = 14, 0.5
WEIGHT, GATE = "net.blocks.block3.branches.1x1.0.weight", "net.blocks.block3.gates.1x1.qz_loga"


class Watch(pl.Callback):
    """Keeps two tensors of each step, and of the network that is validated."""

    def __init__(self):
        self.steps, self.validated = [], None

    def on_train_batch_end(self, trainer, pl_module, *batch):
        state = pl_module.state_dict()
        self.steps.append({key: state[key].clone() for key in (WEIGHT, GATE)})

    def on_validation_batch_start(self, trainer, pl_module, *batch):
        state = pl_module.state_dict()
        self.validated = {key: state[key].clone() for key in (WEIGHT, GATE)}


@pytest.mark.slow
def test_the_average(tmp_path):
    torch.manual_seed(0)
    net = GoogleNet(droprate_init=0.05)
    module = L0Module(
        net,
        10,
        lambda groups: torch.optim.Adam(groups, lr=0.01),
        lambda optimizer, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        objective=L0Penalty(net, (3, 16, 16)),
    )
    watch, average = Watch(), AverageWeights(DECAY)
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=STEPS,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[watch, average],
        **QUIET,
    )
    trainer.fit(module, Digits(batch_size=8))
    expected = watch.steps[0][WEIGHT].double()  # the first average is the first step
    for number, step in enumerate(watch.steps[1:], start=2):
        decay = min(DECAY, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * step[WEIGHT].double()
    torch.testing.assert_close(watch.validated[WEIGHT].double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(watch.validated[WEIGHT], watch.steps[-1][WEIGHT])
    assert torch.equal(watch.validated[GATE], watch.steps[-1][GATE])


@pytest.mark.slow
def test_numbers_of_channels_stay():
    """Those by which a cut network selects channels, whatever the average of the weights."""
    net = torch.nn.Sequential(ChannelSelect(500), torch.nn.Linear(500, 2))
    net[0].order.copy_(torch.randperm(500))
    average = AveragedModel(net, multi_avg_fn=AverageWeights().blend, use_buffers=True)
    before = net[1].weight.clone()
    for _ in range(50):
        torch.nn.init.normal_(net[1].weight)
        average.update_parameters(net)
    assert torch.equal(average.module[0].order, net[0].order)
    assert not torch.equal(average.module[1].weight, before)


def test_a_target_is_met_by_the_saved_average(command, tmp_path):
    """Settled gates are those of the cut network at once, though weights lag behind."""
    target = ("target_sparsity=0.4", "droprate_init=0.05", "trainer.max_epochs=3")
    settings = ("callbacks=averaged", "callbacks.average_weights.decay=0.99", "gate_lr=0.2")
    result = command("train.py", *SMALL, *target, *settings, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    assert abs(summary(tmp_path)["reached_sparsity"] - 0.4) <= 0.01
    best = read_checkpoint(checkpoint_path(tmp_path, name="best.ckpt"))
    live, saved = best["current_model_state"], best["state_dict"]
    assert all(torch.equal(saved[key], live[key]) for key in saved if key.endswith("qz_loga"))
    assert not torch.equal(saved["net.fc2.weight"], live["net.fc2.weight"])


@pytest.mark.slow
def test_results_are_those_of_the_best_average(command, dense, tmp_path):
    """The rate rises to the end, so that the last average is worse."""
    rising = ("optimizer.lr=0.2", "scheduler=one_cycle", "scheduler.pct_start=0.99")
    length = ("trainer.max_epochs=4", "trainer.limit_train_batches=10")
    run = (f"ckpt_path={dense}", "without_using_gate=true", f"output_dir={tmp_path}")
    assert (
        command(
            "train.py", *SMALL, "optimizer=sgd", *rising, *length, "callbacks=averaged", *run
        ).code
        == 0
    )
    rows = read_csv(run_folder(tmp_path) / "metrics.csv")
    found = [float(row["val_acc"]) for row in rows if row["val_acc"]]
    assert found[-1] < max(found)
    assert summary(tmp_path)["val_acc"] == pytest.approx(max(found))
