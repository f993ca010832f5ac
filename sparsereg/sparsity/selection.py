"""Which gates stay open: enough of every block, and in the end those that a target leaves."""

from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers
from sparsereg.sparsity.cost import ExpectedCost

GUARDED = -1.6  # ln α of a gate that is kept open: P(z ≠ 0) = 1/2 at β = 2/3
OPEN, CLOSED = 6.0, -10.0  # ln α of settled gates, which draw hardly anything but 1, or 0
CLOSE_ENOUGH = 0.001  # to a target, about one channel of GoogleNet; at most 1 % of what remains
TRIED = 50  # gates of which one more is closed where a target must be reached


@torch.no_grad()
def reopen(net: nn.Module, cost: ExpectedCost, number: int) -> None:
    """Raise ln α of the highest `number` gates of each bottleneck to `GUARDED` at least."""
    gates = [gate.qz_loga for gate in gate_layers(net).values()]
    qz_loga = torch.cat(gates)
    best = cost.dearest(qz_loga, number)
    qz_loga[best] = qz_loga[best].clamp(min=GUARDED)
    # in one kernel; torch's optimizers use it, and it has no public name
    torch._foreach_copy_(gates, qz_loga.split([len(gate) for gate in gates]))


def choose_open(
    qz_loga: Tensor,
    cost: ExpectedCost,
    name: str,
    target: float,
    min_open: int,
    reach: bool = False,
    tries: int | None = None,
) -> Tensor:
    """The gates that stay open so that the cut network has the target sparsity, (gates,).

    Gates close in the order of ln α, the lowest first. One with which more would go than is wanted,
    such as the last of a branch, which takes the reduction along, is passed over for the next,
    unless that leaves the network farther from the target than closing it.

    Args:
        qz_loga: ln α of all gates, (gates,).
        cost: counts the cut network.
        name: the cost that the target is for.
        target: sparsity in (0, 1).
        min_open: gates that stay open, at least, in each of the bottlenecks of `cost`: those with
            the highest ln α or, if the target cannot be reached so, the cheapest.
        reach: the sparsity must be the target at least, not only as near as can be.
        tries: so many gates are tried in place of those that are passed over; None: all.
    """

    qz_loga = qz_loga.cpu()
    dearest = cost.dearest(qz_loga.to(cost.order.device), min_open)
    qz_loga = torch.minimum(qz_loga, qz_loga[cost.channel.cpu()])  # features go with their filter
    candidates = lowest_first(qz_loga, dearest)
    if sparsity_without(candidates, cost, name) < target:
        candidates = lowest_first(qz_loga, cost.cheapest(name, min_open))

    def sparsity(closed: list[int]) -> float:
        return sparsity_without(closed, cost, name)

    return all_but(close(candidates, target, sparsity, reach, tries), cost.num_gates)


def choose_open_by_layer(
    qz_loga: Tensor, cost: ExpectedCost, shares: Tensor, targets: Sequence[float], min_open: int
) -> Tensor:
    """The same where some layers have targets of their own, and the others stay as they are.

    Where filters come before features, those of the filters that have closed close first.

    Args:
        shares: of each gate in the cost that each target is for, (targets, gates).
    """
    closed = []
    kept = cost.dearest(qz_loga.to(cost.order.device), min_open)
    candidates = lowest_first(qz_loga.cpu(), kept)
    for own, target in zip(shares.cpu().double(), targets, strict=True):
        gone = torch.isin(cost.channel.cpu(), torch.tensor(closed, dtype=torch.long)).tolist()
        own_candidates = [gate for gate in candidates if own[gate] > 0]
        own_candidates.sort(key=lambda gate, gone=gone: not gone[gate])
        closed += close(own_candidates, target, lambda gates, own=own: own[gates].sum().item())
    is_closed = deterministic_gate(qz_loga.cpu()) == 0
    is_closed &= shares.cpu().sum(dim=0) == 0
    return all_but([*closed, *is_closed.nonzero().flatten().tolist()], cost.num_gates)


def close(
    candidates: list[int],
    target: float,
    sparsity: Callable[[list[int]], float],
    reach: bool = False,
    tries: int | None = None,
) -> list[int]:
    """Those of the candidates, in their order, that have to close for the target."""
    by_count = range(len(candidates) + 1)
    first = bisect_right(by_count, target, key=lambda n: sparsity(candidates[:n])) - 1
    closed, too_much = candidates[:first], candidates[: first + 1]
    enough = min(CLOSE_ENOUGH, 0.01 * (1 - target))
    for gate in candidates[first:][:tries]:
        if target - sparsity(closed) <= enough:
            break
        if sparsity([*closed, gate]) <= target:
            closed.append(gate)
    if reach and sparsity(closed) < target:
        more = [gate for gate in candidates[first:] if gate not in closed][:TRIED]
        enough = [c for g in more if sparsity(c := [*closed, g]) >= target]
        return min([*enough, too_much], key=sparsity)
    return min(closed, too_much, key=lambda c: abs(sparsity(c) - target))


def lowest_first(qz_loga: Tensor, guarded: Tensor) -> list[int]:
    """The gates that may close, by ln α."""
    guarded = set(guarded.tolist())
    return [gate for gate in qz_loga.argsort().tolist() if gate not in guarded]


def sparsity_without(closed: list[int], cost: ExpectedCost, name: str) -> float:
    return cost.sparsity(all_but(closed, cost.num_gates))[name]


def all_but(closed: list[int], num_gates: int) -> Tensor:
    is_open = torch.ones(num_gates, dtype=torch.bool)
    is_open[closed] = False
    return is_open


@torch.no_grad()
def keep_within(net: nn.Module, low: float, high: float) -> None:
    """Clamp ln α of all gates."""
    for gate in gate_layers(net).values():
        gate.qz_loga.clamp_(low, high)


@torch.no_grad()
def polarise(net: nn.Module, is_open: Tensor) -> None:
    """Set the gates to 1 that are to be open, (gates,), and the others to 0.

    P(z ≠ 0) is then (almost) 1 or 0, and the expected cost is that of the cut network.
    """
    gates = [gate.qz_loga for gate in gate_layers(net).values()]
    parts = is_open.to(gates[0].device).split([len(gate) for gate in gates])
    for gate, part in zip(gates, parts, strict=True):
        gate.copy_(torch.where(part, OPEN, CLOSED))
