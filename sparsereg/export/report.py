"""What cutting a network has gained: size and speed of the dense, masked and cut network."""

import io
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from sparsereg.compact import compact, fold, without_gates
from sparsereg.errors import printable
from sparsereg.export.latency import compare_latency, machine, speedup
from sparsereg.graph.channels import ChannelGraph
from sparsereg.graph.readers import kept
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.sparsity.size import count, dense_size, open_channels, open_channels_table

BATCHES = {1: 31, 128: 9}  # images: rounds of measuring
PEER = "dense folded"


def variants(net: nn.Module, small: nn.Module, round_to: int) -> dict[str, nn.Module]:
    """The network in all its forms, by name."""
    dense = without_gates(net)
    nets = {
        "dense": dense,
        PEER: fold(dense),
        "masked": net,
        "compact": small,
        "compact folded": fold(small),
    }
    if round_to > 1:
        nets["compact folded, round_to=1"] = fold(compact(net))
    return nets


def report(
    net: nn.Module, small: nn.Module, image_shape: tuple[int, int, int], round_to: int
) -> dict:
    """Parameters, multiply-adds, bytes and latency of each variant, as plain types.

    Args:
        net: the gated network, in eval mode on the CPU.
        small: what `compact` made of it.
        image_shape: (C, H, W).
    """
    nets = variants(net, small, round_to)
    rows = {name: count(n, image_shape) | {"bytes": file_size(n)} for name, n in nets.items()}
    for batch, rounds in BATCHES.items():
        times = compare_latency(nets, torch.randn(batch, *image_shape), rounds)
        for name, row in rows.items():
            row[f"ms_batch_{batch}"] = median(times[name])
            row[f"speedup_batch_{batch}"] = speedup(times[name], times[PEER])
    return {
        "sparsity": 1 - rows["compact"]["params"] / dense_size(net, image_shape)["params"],
        "round_to": round_to,
        "variants": rows,
        "machine": machine(),
        "channels": {name: len(gate.qz_loga) for name, gate in gate_layers(net).items()},
        "open_channels": open_channels(net),
        "not_removable": kept(ChannelGraph(net)),
    }


def file_size(net: nn.Module) -> int:
    content = io.BytesIO()
    torch.save(net.state_dict(), content)
    return content.tell()


def print_report(results: dict) -> None:
    console, rows = Console(), results["variants"]
    size = numbers_table("network", "parameters", "multiply-adds", "bytes")
    for name, row in rows.items():
        size.add_row(name, *(f"{row[key]:,}" for key in ("params", "macs", "bytes")))
    speed = numbers_table(
        "speed",
        *(c for n in BATCHES for c in (f"ms, batch {n}", f"× {PEER}")),
    )
    for name, row in rows.items():
        cells = [(row[f"ms_batch_{n}"], row[f"speedup_batch_{n}"]) for n in BATCHES]
        speed.add_row(name, *(f"{number:.2f}" for pair in cells for number in pair))
    console.print(size, speed, results["machine"])
    if results["round_to"] > 1:
        console.print(rounding_pays(rows, results["round_to"]))
    if not results["open_channels"]:
        console.print("The checkpoint has no gates: nothing is cut.")
        return
    console.print(f"sparsity {results['sparsity']:.4f}")
    console.print(open_channels_table(results["open_channels"]))
    for layer, why in results["not_removable"].items():
        print(printable(f"{layer} cannot be removed: {why}"))


def numbers_table(*columns: str) -> Table:
    table = Table(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def rounding_pays(rows: dict[str, dict], round_to: int) -> str:
    rounded, plain = rows["compact folded"], rows["compact folded, round_to=1"]
    gains = [
        f"{rounded[f'speedup_batch_{n}'] / plain[f'speedup_batch_{n}']:.2f} at batch {n}"
        for n in BATCHES
    ]
    return f"round_to={round_to}: {', '.join(gains)} times as fast as round_to=1"
