"""Inference with the dense, masked and cut network at three sparsities, side by side.

    python -m benchmarks.compact

Every branch keeps the same share of its channels, so many that the sparsity is the one named;
weights and positions are random. On a GPU the same again under torch.compile.
"""

import itertools

import torch

from benchmarks.measure import DEVICE, rows_of
from sparsereg.compact import compact, fold, without_gates
from sparsereg.export.latency import compare_latency, machine, speedup
from sparsereg.export.report import BATCHES
from sparsereg.model.basic_l0_blocks import deterministic_gate
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.size import measure

IMAGE = (3, 32, 32)
SPARSITIES = (0.39, 0.64, 0.81)


def keep_share(net: GoogleNet, share: float) -> None:
    """Open this share of each gate layer, at random positions, half of them only partly."""
    for gate in net.gates.values():
        width = len(gate.qz_loga)
        is_open = torch.randperm(width) < max(1, round(share * width))
        values = torch.where(torch.rand(width) < 0.5, 0.5, 5.0)
        gate.qz_loga.data = torch.where(is_open, values, -5.0)


def network_of(sparsity: float) -> GoogleNet:
    """A gated network of about this sparsity; the share is found by bisection."""
    net, low, high = GoogleNet().eval(), 0.0, 1.0
    cost = ExpectedCost(net, IMAGE)
    for _ in range(10):
        share = (low + high) / 2
        keep_share(net, share)
        left = cost.count(deterministic_gate(net.qz_loga().detach()) > 0)["params"]
        is_too_small = 1 - left / cost.dense["params"] > sparsity
        low, high = (share, high) if is_too_small else (low, share)
    return net


def variants(net: GoogleNet, device: str) -> dict[str, torch.nn.Module]:
    dense, cut = without_gates(net), compact(net)
    nets = {
        "dense folded": fold(dense),
        "dense": dense,
        "masked": net,
        "masked, channels_last": GoogleNet().eval(),
        "compact": cut,
        "compact folded": fold(cut),
        "compact folded, round_to=8": fold(compact(net, round_to=8)),
    }
    nets["masked, channels_last"].load_state_dict(net.state_dict())
    nets["masked, channels_last"].to(memory_format=torch.channels_last)
    return {name: n.to(device) for name, n in nets.items()}


def show(nets: dict[str, torch.nn.Module], batch: int, rounds: int, device: str) -> None:
    times = compare_latency(nets, torch.randn(batch, *IMAGE, device=device), rounds)
    for name, own in times.items():
        ratios = [speedup(own, times[peer]) for peer in ("dense folded", "masked")]
        ms = sorted(own)[len(own) // 2]
        print(f"{batch:>5}  {name:<27} {ms:>9.2f} {ratios[0]:>14.2f} {ratios[1]:>9.2f}")


def run(batches: dict[int, int] = BATCHES, share: float = 0.6) -> list[dict]:
    """Networks that keep this share of each branch, as tables of `python -m benchmarks`.

    Args:
        batches: images: rounds of measuring.
    """
    net = GoogleNet().eval()
    keep_share(net, share)
    nets, tables = variants(net, DEVICE), []
    for batch, rounds in batches.items():
        times = compare_latency(nets, torch.randn(batch, *IMAGE, device=DEVICE), rounds)
        seconds = {name: [ms / 1000 for ms in own] for name, own in times.items()}
        how = f"sparsity {measure(net, IMAGE)['sparsity']:.2f}, {DEVICE}, float32, batch {batch}"
        rows = rows_of(seconds, batch, {"× time of dense folded": "dense folded"})
        tables.append({"title": f"Inference, {how}, {rounds} rounds", "rows": rows})
    return tables


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(machine())
    ways = (False, True) if device == "cuda" else (False,)
    for sparsity, compiled in itertools.product(SPARSITIES, ways):
        net = network_of(sparsity)
        size = measure(net, IMAGE)
        nets = variants(net, device)
        if compiled:
            nets = {name: torch.compile(n) for name, n in nets.items()}
        how = ", torch.compile" if compiled else ""
        print(f"\nsparsity {size['sparsity']:.3f}, {size['macs']:,} MACs, {device}{how}")
        print(f"batch  {'network':<27} {'ms':>9} {'× dense folded':>14} {'× masked':>9}")
        for batch, rounds in BATCHES.items():
            show(nets, batch, rounds, device)


if __name__ == "__main__":
    main()
