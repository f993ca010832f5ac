"""Do layers of whole vectors of channels pay? Measured on the cut network: `round_to=auto`."""

from pathlib import Path
from typing import Any

from rich.console import Console

from sparsereg.budgets.clock import Clock
from sparsereg.checkpoint import load, read_checkpoint
from sparsereg.choices import ROUNDINGS
from sparsereg.compact import compact
from sparsereg.export.report import numbers_table

LEAST_GAIN = 1.02  # times as fast, for which channels of zeros are carried along


def round_to(asked: int | str, checkpoint: str | Path, latency: dict[str, Any]) -> int:
    """The number that is asked for; of "auto" the one with which the cut network is fastest."""
    if asked != "auto":
        return asked
    net = load(checkpoint)
    nets = {f"{n}": compact(net, n) for n in ROUNDINGS}
    shape = tuple(read_checkpoint(checkpoint)["sparsereg"]["data"]["image_shape"])
    clock = Clock(**latency)
    times = clock.networks(nets, shape)
    chosen = fastest(times)
    table = numbers_table("round_to", f"ms, batch {clock.batch}", "× round_to=1")
    for name, ms in times.items():
        table.add_row(name, f"{ms:.3g}", f"{times['1'] / ms:.2f}")
    Console().print(table, f"round_to=auto chooses {chosen}")
    return chosen


def fastest(times: dict[str, float]) -> int:
    """1, unless another is faster by `LEAST_GAIN`."""
    best = min(times, key=times.get)
    return int(best) if times["1"] / times[best] >= LEAST_GAIN else 1
