"""The sparsity that is asked for is the one that the cut network has."""

import json
import math

import pytest
import torch
from conftest import SHORT, assert_one_line, checkpoint_path, run_folder, run_process
from test_training import events

import sparsereg
from sparsereg.checkpoint import read_checkpoint
from sparsereg.compact import compact
from sparsereg.constraint import SparsityConstraint
from sparsereg.cost import ExpectedCost
from sparsereg.model.basic_l0_blocks import deterministic_gate, prob_nonzero
from sparsereg.model.googlenet import GoogleNet
from sparsereg.report import warn_missed
from sparsereg.selection import GUARDED, choose_open, polarise, reopen
from sparsereg.size import count

IMAGE = (3, 32, 32)
DENSE = {"params": 260_650, "macs": 79_643_904}
TWO_EPOCHS = (*SHORT, "trainer.max_epochs=2", "trainer.limit_train_batches=6")


@pytest.fixture(scope="module")
def cost() -> ExpectedCost:
    return ExpectedCost(GoogleNet(), IMAGE)


@pytest.fixture(scope="module")
def reductions_cost() -> ExpectedCost:
    return ExpectedCost(GoogleNet(gate_reductions=True), IMAGE)


def summary(folder, version: int = 0) -> dict:
    return json.loads((run_folder(folder, version) / "summary.json").read_text())


# The multiplier


def test_multiplier_follows_the_bound_and_restarts_at_the_target():
    """By hand: 2 times what is above the bound is added, until E[cost] is 0.4."""
    constraint = SparsityConstraint(0.6, dual_lr=2.0, target_warmup=5)
    constraint.plan(epochs=10, steps=100)
    steps = [  # E[cost], progress, λ after the step; the bound is 1, 0.7, 0.7, 0.4, …
        *((0.9, 0.0, 0.0), (0.95, 0.25, 0.5), (0.6, 0.25, 0.3), (0.5, 0.5, 0.5), (0.45, 0.9, 0.6)),
        *((0.4, 0.9, 0.0), (0.5, 0.9, 0.2), (0.3, 0.1, 0.0)),
    ]
    for expected, progress, multiplier in steps:
        constraint.ascend(torch.tensor(expected), progress)
        assert constraint.multiplier.item() == pytest.approx(multiplier)


def test_a_higher_target_has_a_faster_multiplier():
    rates = []
    for target in (0.5, 0.9):
        constraint = SparsityConstraint(target)
        constraint.plan(epochs=10, steps=100)
        rates.append(constraint.rate)
    assert rates == pytest.approx([4.0, 20.0])


def test_bound_falls_from_1_to_what_is_left():
    constraint = SparsityConstraint(0.6, target_warmup=5)
    constraint.plan(epochs=10, steps=100)
    bounds = [constraint.bound(progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert bounds == pytest.approx([1, 0.7, 0.4, 0.4, 0.4])
    at_once = SparsityConstraint(0.6, target_warmup=0)
    at_once.plan(epochs=10, steps=100)
    assert at_once.bound(0.0) == pytest.approx(0.4)


@pytest.mark.parametrize("settle_epochs, settle_at", [(None, 0.6), (1, 0.9), (0, 0.99), (10, 0)])
def test_gates_settle_before_the_last_step(settle_epochs, settle_at):
    constraint = SparsityConstraint(0.6, settle_epochs=settle_epochs)
    constraint.plan(epochs=10, steps=100)
    assert constraint.settle_at == pytest.approx(settle_at)


def test_ascent_finds_the_multiplier_that_keeps_the_bound():
    """A problem whose answer is known: the least of -log p with p at most 0.3 has λ = 1 / 0.3."""
    x = torch.tensor(2.0, requires_grad=True)
    constraint = SparsityConstraint(0.7, dual_lr=0.02, target_warmup=0)
    constraint.plan(epochs=1, steps=6000)
    optimizer = torch.optim.SGD([x], lr=0.5)
    for _ in range(6000):
        p = torch.sigmoid(x)
        (-p.log() + constraint.multiplier.clone() * p).backward()
        optimizer.step(), optimizer.zero_grad()
        before = constraint.multiplier.item()
        constraint.ascend(p.detach(), progress=1.0)
        if constraint.multiplier == 0 < before:
            break
    assert p.item() == pytest.approx(0.3, abs=0.001)
    assert before == pytest.approx(1 / 0.3, abs=0.05)


# The gates that stay open


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("name", ["params", "macs", "channels"])
def test_chosen_gates_have_the_target(cost, name, target):
    for seed in range(3):
        qz_loga = torch.randn(832, generator=torch.Generator().manual_seed(seed))
        is_open = choose_open(qz_loga, cost, name, target, min_open=1)
        assert cost.sparsity(is_open)[name] == pytest.approx(target, abs=0.005)


@pytest.mark.parametrize("name, target", [("params", 0.99), ("macs", 0.97), ("params", 0.95)])
def test_the_last_percents_are_reached_too(cost, reductions_cost, name, target):
    """Where the most important gates are dear, the cheapest of each block stay instead."""
    for expected_cost in (cost, reductions_cost):
        qz_loga = torch.randn(expected_cost.num_gates, generator=torch.Generator().manual_seed(1))
        is_open = choose_open(qz_loga, expected_cost, name, target, min_open=1)
        assert expected_cost.sparsity(is_open)[name] == pytest.approx(target, abs=0.005)


@pytest.mark.parametrize("name", ["params", "macs"])
def test_chosen_gates_count_as_the_network_that_is_cut(cost, name):
    torch.manual_seed(0)
    net = GoogleNet()
    is_open = choose_open(torch.randn(832), cost, name, 0.6, min_open=1)
    polarise(net, is_open)
    assert 1 - count(compact(net), IMAGE)[name] / DENSE[name] == pytest.approx(0.6, abs=0.005)
    assert torch.equal(deterministic_gate(net.qz_loga()), is_open.float()), "exactly 0 or 1"
    expected = cost(prob_nonzero(net.qz_loga()))[name]
    assert expected.item() == pytest.approx(0.4, abs=0.006), "and hardly ever anything else"


def test_gates_close_in_their_order_except_the_guarded(cost):
    qz_loga = torch.linspace(-3, 3, 832)  # the first block closes first
    is_open = choose_open(qz_loga, cost, "channels", 0.5, min_open=4)
    still_open = [i for end in (64, 160, 256, 352) for i in range(end - 4, end)]
    assert is_open.nonzero().flatten().tolist() == [*still_open, *range(432, 832)]


def test_reopen_keeps_the_highest_gates_of_each_block(cost):
    net = GoogleNet()
    for gate in net.gates.values():
        gate.qz_loga.data.fill_(-9)
    net.gates["block3/5x5"].qz_loga.data[2] = -4
    net.gates["block4/1x1"].qz_loga.data[:3] = 1
    reopen(net, cost.bottlenecks, 2)
    raised = {name: int((g.qz_loga >= GUARDED).sum()) for name, g in net.gates.items()}
    blocks = [
        sum(n for name, n in raised.items() if name.startswith(f"block{b}/")) for b in "12345678"
    ]
    assert blocks == [2, 2, 2, 3, 2, 2, 2, 2]
    assert net.gates["block3/5x5"].qz_loga[2] == GUARDED
    assert net.gates["block4/1x1"].qz_loga[:3].tolist() == [1, 1, 1]
    assert prob_nonzero(torch.tensor(GUARDED)).item() == pytest.approx(0.5, abs=1e-3)


# Runs


@pytest.mark.parametrize(
    "name, target", [("params", 0.3), ("params", 0.5), ("params", 0.8), ("macs", 0.5)]
)
def test_a_short_run_hits_its_target(command, tmp_path, name, target):
    arguments = (f"cost={name}", f"target_sparsity={target}", f"output_dir={tmp_path}")
    result = command("train.py", *TWO_EPOCHS, *arguments)
    assert result.code == 0, result.err
    results = summary(tmp_path)
    assert results["reached_sparsity"] == pytest.approx(target, abs=0.01)
    small = count(compact(sparsereg.load(checkpoint_path(tmp_path, name="best.ckpt"))), IMAGE)
    assert 1 - small[name] / DENSE[name] == pytest.approx(target, abs=0.02), "at 32x32, too"
    assert "missed" not in result.err
    assert f"sparsity of {name}, {target} asked for" in result.out


def test_what_a_run_with_a_target_logs(command, tmp_path):
    arguments = (
        "target_sparsity=0.6",
        "cost=params",
        "dual_lr=9",
        "target_warmup=1",
        "gate_lr=0.01",
    )
    result = command("train.py", *TWO_EPOCHS, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    log = events(run_folder(tmp_path))
    values = {tag: [e.value for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    for name in ("channels", "params", "macs"):
        assert len(values[f"expected_sparsity/{name}"]) == 12
        assert len(values[f"actual_sparsity/{name}"]) == 2
    one_minus = [1 - value for value in values["L_C0"]]
    assert values["expected_sparsity/channels"] == pytest.approx(one_minus, abs=1e-6)
    assert values["actual_sparsity/params"] == values["sparsity"]
    assert values["actual_sparsity/params"][1] == pytest.approx(0.6, abs=0.01)
    # λ by hand, from the sparsities: none at first, then 9 times what is missing
    expected, multiplier = values["expected_sparsity/params"], 0.0
    for step in range(9):
        assert values["lambda_l0"][step] == pytest.approx(multiplier, rel=1e-3, abs=1e-4)
        multiplier = max(0.0, multiplier + 9 * (0.6 * min(1, step / 6) - expected[step]))
    assert max(values["lambda_l0"]) > 0 == values["lambda_l0"][0]


@pytest.mark.parametrize("optimizer, gate_lr, rate", [("adamw", "null", 0.2), ("sgd", "0.5", 0.5)])
def test_settled_gates_stay(command, tmp_path, optimizer, gate_lr, rate):
    """Neither momentum nor the penalty moves them, while the weights train on. Before that their
    rate fits the run of 12 steps, or is the one that is given."""
    arguments = ("target_sparsity=0.5", f"optimizer={optimizer}", f"gate_lr={gate_lr}")
    result = command("train.py", *TWO_EPOCHS, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    checkpoint = read_checkpoint(checkpoint_path(tmp_path))
    state = checkpoint["state_dict"]
    gates = torch.cat([tensor for key, tensor in state.items() if key.endswith("qz_loga")])
    assert sorted(gates.unique().tolist()) == [-10, 6]
    assert state["constraint._extra_state"] == {"settled": True}
    assert checkpoint["optimizer_states"][0]["param_groups"][1]["lr"] == pytest.approx(rate)


def test_best_is_among_the_settled(command, tmp_path):
    """However good the accuracy was before the network had the sparsity."""
    arguments = ("target_sparsity=0.9", "cost=params", "settle_epochs=1", "trainer.max_epochs=3")
    result = command("train.py", *TWO_EPOCHS, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    assert read_checkpoint(checkpoint_path(tmp_path, name="best.ckpt"))["epoch"] == 2


def test_a_missed_target_is_said(capsys):
    results = {"checkpoint": "RUN/best.ckpt", "cost": "params", "target_sparsity": 0.5}
    warn_missed(results | {"reached_sparsity": 0.4921})
    assert capsys.readouterr().err == ""
    warn_missed(results | {"reached_sparsity": 0.4832})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: target_sparsity=0.5 (cost=params) was missed")
    assert "RUN/best.ckpt has 0.4832" in line


def test_the_multiplier_closes_gates(command, tmp_path):
    """Before they are settled; with λ = 0 the expected sparsity would stay below 0.05."""
    arguments = (
        "data=digits",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "optimizer.lr=3e-3",
    )
    run = ("trainer.max_epochs=4", "trainer.log_every_n_steps=1", "droprate_init=0.05")
    target = ("target_sparsity=0.6", "cost=params", f"output_dir={tmp_path}")
    result = command("train.py", *arguments, *run, *target)
    assert result.code == 0, result.err
    log = events(run_folder(tmp_path))
    expected = [event.value for event in log.Scalars("expected_sparsity/params")]
    settled = int(0.6 * len(expected))
    assert expected[0] < 0.05 and expected[settled - 1] > 0.25
    assert expected[-1] == pytest.approx(0.6, abs=0.01)


def test_going_on_to_a_higher_target_keeps_the_gates(command, tmp_path):
    first = ("target_sparsity=0.5", "cost=params", "droprate_init=0.05")
    result = command("train.py", *TWO_EPOCHS, *first, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    reached = summary(tmp_path)["reached_sparsity"]
    start = ("keep_gates=true", f"ckpt_path={checkpoint_path(tmp_path)}", "cost=params")
    result = command(
        "train.py", *TWO_EPOCHS, *start, "target_sparsity=0.8", f"output_dir={tmp_path}"
    )
    assert result.code == 0, result.err
    assert summary(tmp_path, 1)["reached_sparsity"] == pytest.approx(0.8, abs=0.01)
    opened = [
        deterministic_gate(sparsereg.load(checkpoint_path(tmp_path, version)).qz_loga()) > 0
        for version in (0, 1)
    ]
    assert (opened[0] >= opened[1]).all(), "what was closed stays closed"
    going_on = ("resume_training=true", "trainer.max_epochs=3", "target_warmup=1")
    resumed = command("train.py", f"ckpt_path={checkpoint_path(tmp_path, 1)}", *going_on)
    assert_one_line(resumed, "target_warmup=1", "null", "a resumed run keeps it")
    lower = command("train.py", *TWO_EPOCHS, *start, "target_sparsity=0.3")
    assert_one_line(lower, "target_sparsity=0.3", f"{reached:.4f}", "keep_gates=false")


def test_cut_and_trained_on_in_one_command(command, tmp_path):
    arguments = ("target_sparsity=0.5", "cost=macs", "gate_reductions=true", "finetune_epochs=1")
    result = command("train.py", *TWO_EPOCHS, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    cut = summary(tmp_path, 1)
    assert 1 - cut["macs"] / cut["dense_macs"] == pytest.approx(0.5, abs=0.01)


def test_gates_on_reductions_reach_95_percent(command, tmp_path):
    arguments = ("target_sparsity=0.95", "cost=params", "gate_reductions=true")
    result = command("train.py", *TWO_EPOCHS, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    assert summary(tmp_path)["reached_sparsity"] == pytest.approx(0.95, abs=0.01)
    assert "reduce3x3" in result.out


# λ by hand


def test_penalty_on_macs_and_its_warmup(command, tmp_path):
    """The loss is the cross-entropy and λ · expected multiply-adds; λ rises over two epochs."""
    arguments = ("cost=macs", "lambda_l0=3.0", "lambda_warmup=2", "trainer.max_epochs=3")
    result = command("train.py", *SHORT, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    log = events(run_folder(tmp_path))
    price = [event.value for event in log.Scalars("lambda_l0")]
    assert price == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3, 3])
    macs = [1 - event.value for event in log.Scalars("expected_sparsity/macs")]
    for epoch in range(3):
        steps = range(3 * epoch, 3 * epoch + 3)
        penalty = sum(price[step] * macs[step] for step in steps) / 3
        loss, ce = (log.Scalars(tag)[epoch].value for tag in ("train_loss", "train_ce"))
        assert loss - ce == pytest.approx(penalty, abs=1e-5)


STRONG = ("lambda_l0=1e4", "gate_lr=2.0", "trainer.limit_train_batches=8")


def test_a_block_keeps_a_channel(command, tmp_path):
    """However large λ."""
    result = command("train.py", *SHORT, *STRONG, f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    results = summary(tmp_path)
    assert 0 < results["params"] < 10_000
    assert (
        min(sum(list(results["open_channels"].values())[i : i + 4]) for i in range(0, 32, 4)) == 1
    )


def test_without_that_guard_the_collapse_is_said(tmp_path):
    arguments = (*STRONG, "min_open_channels=0", f"output_dir={tmp_path}")
    result = run_process("train.py", *SHORT, *arguments)
    assert result.code == 0, result.err
    assert summary(tmp_path)["params"] == 0
    assert "ignores its input" in result.err and "min_open_channels=1" in result.err


HUNDRED_STEPS = ("data.batch_size=4", "trainer.limit_train_batches=100", "lambda_l0=5.0")


def test_still_gates_are_said(tmp_path):
    arguments = (*HUNDRED_STEPS, "gate_lr=1e-6", f"output_dir={tmp_path}")
    result = run_process("train.py", *SHORT, *arguments)
    assert result.code == 0, result.err
    assert "the gates are not moving: after 10 of 100 steps" in result.err
    assert "raise gate_lr or lambda_l0 (5 now)" in result.err


def test_moving_gates_are_not(command, tmp_path):
    """Warnings are errors in this process."""
    arguments = (*HUNDRED_STEPS, "gate_lr=0.05", "trainer.limit_val_batches=1")
    result = command("train.py", *SHORT, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err


TARGET = "target_sparsity=0.7"
CONTRADICTIONS = [  # settings that exclude one another, what the line must say
    ((TARGET, "lambda_l0=0.5"), ["lambda_l0=0.5", TARGET, "leave one of them out"]),
    ((TARGET, "without_using_gate=true"), [TARGET, "without_using_gate=false"]),
    (("gate_reductions=true", "without_using_gate=true"), ["gate_reductions=true", "needs gates"]),
    ((TARGET, "lambda_warmup=2"), ["lambda_warmup=2", "target_warmup"]),
    (
        (TARGET, "trainer.max_epochs=5", "target_warmup=3", "settle_epochs=2.5"),
        ["target_warmup=3", "last 2.5 epochs", "trainer.max_epochs=5"],
    ),
    ((TARGET, "round_to=8"), ["round_to=8", TARGET, "miss"]),
    ((TARGET, "min_open_channels=0"), ["min_open_channels=0", TARGET]),
    ((TARGET, "trainer.max_epochs=5", "target_warmup=4"), ["target_warmup=4", "last 2 epochs"]),
    (
        (TARGET, "trainer.max_epochs=9", "trainer.check_val_every_n_epoch=5"),
        ["trainer.check_val_every_n_epoch=5", "3.6", "best.ckpt"],
    ),
    (("lambda_warmup=2", "without_using_gate=true"), ["lambda_warmup=2", "needs gates"]),
    (("keep_gates=true", "ckpt_path={gated}", "droprate_init=0.05"), ["droprate_init=0.05"]),
    (
        ("keep_gates=true", "ckpt_path={gated}", "gate_reductions=true", "data=digits"),
        ["reductions have no gates", "gate_reductions=false"],
    ),
    (
        ("resume_training=true", "ckpt_path={gated}", "trainer.max_epochs=9", TARGET),
        [TARGET, "null", "resume_training=false"],
    ),
]


@pytest.mark.parametrize("arguments, words", CONTRADICTIONS)
def test_contradictions(command, trained, tmp_path, arguments, words):
    arguments = [argument.format(**trained) for argument in arguments]
    result = command("train.py", *arguments, f"output_dir={tmp_path}")
    assert_one_line(result, *words)
    assert not list(tmp_path.iterdir())


def test_an_experiments_lambda_gives_way_to_a_target(command, tmp_path):
    """Only the λ of the command line contradicts it."""
    arguments = ("experiment=demo", "scheduler=multistep", "target_sparsity=0.5")
    result = command("train.py", *SHORT, *arguments, f"output_dir={tmp_path}")
    assert result.code == 0, result.err


def test_the_highest_sparsity_is_in_the_error(command, tmp_path):
    arguments = ("target_sparsity=0.995", "cost=params", f"output_dir={tmp_path}")
    result = command("train.py", *SHORT, *arguments)
    smallest = 1920 + 67 + 7 * 4 + 20  # stem, eight blocks of one channel, and the head
    highest = math.floor((1 - smallest / 260_650) * 1e4) / 1e4
    assert_one_line(result, "target_sparsity=0.995", str(highest))
    assert not (tmp_path / "lightning_logs").exists()


def test_more_open_channels_than_there_are(command, tmp_path):
    arguments = ("min_open_channels=17", "gate_reductions=true", f"output_dir={tmp_path}")
    result = command("train.py", *SHORT, *arguments)
    assert_one_line(result, "min_open_channels=17", "at most 16")
    assert not list(tmp_path.iterdir())


def test_ungated_checkpoint_has_no_gates_to_keep(command, trained):
    result = command("train.py", *SHORT, f"ckpt_path={trained['ungated']}", "keep_gates=true")
    assert_one_line(result, "keep_gates=true", "has no gates")
