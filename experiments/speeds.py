"""How much faster the networks of a table are than its dense one, measured side by side.

    python -m experiments.speeds outputs/table/cpu
    python -m experiments.speeds outputs/table/cpu --start models/googlenet_dense.pt

Every finished run, the dense one too, is cut, folded and timed in turns with the folded dense
network of its seed, or that of --start; gates_… and scratch_… are left out, whose networks nobody
uses. What comes out lies beside the checkpoint that the results are of, where report.py looks
(best_compact/report.json). Runs that have it already are left out.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import torch

from sparsereg.checkpoint import load, read_checkpoint
from sparsereg.compact import compact, fold
from sparsereg.export.latency import compare_latency, machine, speedup
from sparsereg.export.report import BATCHES
from sparsereg.files import write_atomically
from sparsereg.runs.folder import MEASURED, compact_folder, read_summary


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Measure the networks of a table.")
    parser.add_argument("table", type=Path, help="folder of its runs")
    parser.add_argument("--start", type=Path, help="the dense network that the table was given")
    options = parser.parse_args(arguments)
    for summary in sorted(options.table.glob("*/seed_*/lightning_logs/version_*/summary.json")):
        run, row = summary.parent, summary.parents[2]
        if row.parent.name.startswith(("gates_", "scratch_")):
            continue
        own = Path(read_summary(run)["checkpoint"])
        dense = options.start or trained_dense(options.table, row.name)
        report = compact_folder(own) / "report.json"
        if not report.exists():
            times = compare(own, dense)
            report.parent.mkdir(exist_ok=True)
            content = {"variants": {MEASURED: times}, "machine": machine()}
            write_atomically(report, json.dumps(content, indent=1).encode())
            print(f"{row}: {times['speedup_batch_128']:.2f} times as fast as dense", flush=True)
    return 0


def trained_dense(table: Path, seed: str) -> Path:
    run = next(table.glob(f"dense/{seed}/lightning_logs/*/summary.json")).parent
    return Path(read_summary(run)["checkpoint"])


def compare(path: Path, dense: Path) -> dict[str, float]:
    """Milliseconds of a batch, and how many times faster than the dense network, by batch size."""
    nets = {"dense": fold(compact(load(dense))), MEASURED: fold(compact(load(path)))}
    image_shape = read_checkpoint(path)["sparsereg"]["data"]["image_shape"]
    found = {}
    for batch, rounds in BATCHES.items():
        times = compare_latency(nets, torch.randn(batch, *image_shape), rounds)
        found[f"ms_batch_{batch}"] = median(times[MEASURED])
        found[f"speedup_batch_{batch}"] = speedup(times[MEASURED], times["dense"])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
