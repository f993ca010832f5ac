"""The multiplier, by hand."""

import pytest
import torch

from sparsereg.sparsity.constraint import SparsityConstraint


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


@pytest.mark.slow
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
