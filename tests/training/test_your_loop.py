"""A loop of one's own, and a LightningModule of one's own, train as train.py does, bit for bit."""

from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import QUIET, SMALL, checkpoint_path, run_here
from networks import gates_of
from torch import nn
from torch.nn import functional as F

import sparsereg
from sparsereg.checkpoint import read_checkpoint
from sparsereg.data import Digits
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.networks import new_network
from sparsereg.training.guards import EpochSeed
from sparsereg.training.module import L0Module

EPOCHS, BATCHES, LR = 2, 6, 1e-3
IMAGE = (3, 16, 16)
LENGTH = (f"trainer.max_epochs={EPOCHS}", f"trainer.limit_train_batches={BATCHES}")
MODES = {
    "target": {"target_sparsity": 0.6, "cost": "macs"},
    "by hand": {"lambda_l0": 20.0, "cost": "params", "lambda_warmup": 1},
}


@pytest.fixture(scope="module", params=MODES)
def mode(request) -> dict:
    return MODES[request.param]


@pytest.fixture(scope="module")
def by_train_py(mode, tmp_path_factory) -> tuple[list[float], dict]:
    """The losses, and the network in the end."""
    losses, step = [], L0Module.training_step
    folder = tmp_path_factory.mktemp("run")

    def recorded(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    settings = (f"{key}={value}" for key, value in mode.items())
    with patch.object(L0Module, "training_step", recorded):
        assert run_here("train.py", *SMALL, *LENGTH, *settings, f"output_dir={folder}") == 0
    state = read_checkpoint(checkpoint_path(folder))["state_dict"]
    return losses, {key[4:]: t for key, t in state.items() if key.startswith("net.")}


def new_net() -> nn.Module:
    torch.manual_seed(42)
    return new_network("sparsereg", "lenet5", image_shape=IMAGE)


def assert_same(losses: list[float], net: nn.Module, by_train_py: tuple) -> None:
    expected, state = by_train_py
    assert losses == expected and len(losses) == EPOCHS * BATCHES
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())


def reached(net: nn.Module, cost: str) -> float:
    size = sparsereg.measure(net, IMAGE)
    return 1 - size[cost] / size[f"dense_{cost}"]


def test_eight_lines(by_train_py, mode):
    data = Digits(batch_size=32)
    data.setup()
    data.trainer = SimpleNamespace(
        training=True,
        global_rank=0,
        world_size=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    loader, net, steps = data.train_dataloader(), new_net(), EPOCHS * BATCHES
    rest = dict(mode) | {"steps": steps, "epochs": EPOCHS}
    target = rest.pop("target_sparsity", None)
    if target is None:
        gates = sparsereg.L0Penalty(net, IMAGE, **rest)
    else:
        gates = sparsereg.TargetSparsity(net, IMAGE, target, **rest)
    groups = sparsereg.param_groups(net, LR, gates.rate(LR))
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
    losses = []
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        torch.manual_seed(int(np.random.SeedSequence([42, epoch, 0]).generate_state(1)[0]))
        for _, batch in zip(range(BATCHES), loader, strict=False):
            images, labels = data.on_after_batch_transfer(batch)
            loss = F.cross_entropy(net(images), labels) + gates.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            gates.step()
            losses.append(loss.item())
    assert_same(losses, net, by_train_py)
    if target is not None:
        assert reached(net, "macs") == pytest.approx(target, abs=0.01)


class Yours(pl.LightningModule):
    """As anyone would write it."""

    def __init__(self, net: nn.Module, groups=None):
        super().__init__()
        self.net, self.groups, self.losses = net, groups, []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return {"loss": F.cross_entropy(self(images), labels), "of": batch_idx}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert outputs["of"] == batch_idx
        self.losses.append(outputs["loss"].item())

    def configure_optimizers(self):
        groups = self.groups or sparsereg.param_groups(self, LR, self.gate_lr)
        return torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **settings) -> pl.Trainer:
    settings = {"max_epochs": EPOCHS, "limit_train_batches": BATCHES} | settings
    trainer = pl.Trainer(
        **settings,
        callbacks=list(callbacks),
        **QUIET,
    )
    trainer.fit(module, Digits(batch_size=32))
    return trainer


def test_the_callback(by_train_py, mode):
    module = Yours(new_net())
    module.gate_lr = 0.2 if "target_sparsity" in mode else None  # as train.py: 100 / 12 steps
    trainer = fit(module, sparsereg.L0Callback(**mode), EpochSeed(42))
    assert_same(module.losses, module.net, by_train_py)
    logged = trainer.callback_metrics
    assert {"L_C0", "lambda_l0", "expected_sparsity/macs"} <= logged.keys()
    found = reached(module.net, mode["cost"])
    assert logged[f"actual_sparsity/{mode['cost']}"].item() == pytest.approx(found, abs=1e-6)
    if "target_sparsity" in mode:
        assert found == pytest.approx(0.6, abs=0.01)
    assert "training_step" not in vars(module), "its own again"


MISTAKES = {
    "no gates": (
        lambda: Yours(nn.Sequential(nn.Flatten(), nn.Linear(768, 10))),
        "Yours has no gates: in its __init__",
    ),
    "one group": (
        lambda: Yours(net := new_net(), [{"params": [*net.parameters()]}]),
        r"parameter group of their own.*sparsereg\.param_groups\(self",
    ),
    "not all": (
        lambda: Yours(net := new_net(), [{"params": [gates_of(net)[0].qz_loga]}]),
        "parameter group of their own",
    ),
    "out of reach": (lambda: Yours(new_net()), "target_sparsity=0.9999 of cost=macs is out of"),
}


@pytest.mark.parametrize("make, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_module_of_ones_own(make, message):
    module = make()
    module.gate_lr = 0.1
    with pytest.raises(UserError, match=message):
        fit(module, sparsereg.L0Callback(target_sparsity=0.9999, cost="macs"))


def test_going_on_from_a_state_dict():
    """λ, the number of steps and whether the gates are fixed."""
    nets = [new_net(), new_net()]
    loop, other = (sparsereg.TargetSparsity(net, IMAGE, 0.5, cost="macs", steps=5) for net in nets)
    for _ in range(3):
        loop.penalty()
        loop.step()
    assert loop.settled and not other.settled
    other.load_state_dict(loop.state_dict())
    assert other.settled and other.done == 3
    assert other.weight_of_cost() == loop.weight_of_cost()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_settled_gates_stay_whatever_the_optimizer_does(optimizer):
    torch.manual_seed(0)
    net = new_net()
    gates = sparsereg.TargetSparsity(net, IMAGE, 0.5, cost="params", steps=100)
    optimizer = optimizer(sparsereg.param_groups(net, 1e-3, gate_lr=0.5))
    for settle_after in (2, 6):
        for _ in range(settle_after):
            loss = net(torch.randn(4, *IMAGE)).square().mean() + gates.penalty()
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
            gates.step()
        if not gates.settled:
            gates.settle()  # before its time
            opened = deterministic_gate(gates.qz_loga()) > 0
    assert sorted({*gates.qz_loga().tolist()}) == [-10, 6]
    assert torch.equal(deterministic_gate(gates.qz_loga()) > 0, opened)
    assert reached(net, "params") == pytest.approx(0.5, abs=0.01)


def test_what_the_objects_refuse():
    with pytest.raises(UserError, match=r"Linear has no gates: .*insert_gates"):
        sparsereg.L0Penalty(nn.Linear(2, 2), IMAGE)
    with pytest.raises(UserError, match="cost=mac must be one of channels, params"):
        sparsereg.L0Penalty(new_net(), IMAGE, cost="mac")
    with pytest.raises(UserError, match="target=60 must be above 0 and below 1"):
        sparsereg.TargetSparsity(new_net(), IMAGE, 60)
    with pytest.raises(ValueError, match="steps=… is needed"):
        _ = sparsereg.L0Penalty(new_net(), IMAGE, lambda_warmup=1).penalty()
