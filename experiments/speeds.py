"""How much faster the networks of a table are than its dense one, measured side by side.

    python -m experiments.speeds outputs/table/cpu

Every finished run without gates, the dense one too, is folded and timed in turns with the folded
dense network of its seed. What comes out lies beside its best checkpoint, where report.py looks
(best_compact/report.json). Runs that have it already are left out.
"""

import json
import sys
from pathlib import Path
from statistics import median

import torch

from sparsereg.checkpoint import load, read_checkpoint, write_atomically
from sparsereg.compact import compact, fold
from sparsereg.export.latency import compare_latency, machine, speedup
from sparsereg.export.report import BATCHES

VARIANT = "compact folded"  # its name in report.json


def main(arguments: list[str]) -> int:
    [root] = map(Path, arguments)
    for summary in sorted(root.glob("*/seed_*/lightning_logs/version_*/summary.json")):
        run, row = summary.parent, summary.parents[2]
        if row.parent.name.startswith(("gates_", "scratch_")):
            continue  # not cut
        report = run / "checkpoints" / "best_compact" / "report.json"
        dense = next(root.glob(f"dense/{row.name}/lightning_logs/*/summary.json")).parent
        if not report.exists():
            times = compare(run / "checkpoints/best.ckpt", dense / "checkpoints/best.ckpt")
            report.parent.mkdir(exist_ok=True)
            content = {"variants": {VARIANT: times}, "machine": machine()}
            write_atomically(report, json.dumps(content, indent=1).encode())
            print(f"{row}: {times['speedup_batch_128']:.2f} times as fast as dense", flush=True)
    return 0


def compare(path: Path, dense: Path) -> dict[str, float]:
    """Milliseconds of a batch, and how many times faster than the dense network, by batch size."""
    nets = {"dense": fold(compact(load(dense))), VARIANT: fold(compact(load(path)))}
    image_shape = read_checkpoint(path)["sparsereg"]["data"]["image_shape"]
    found = {}
    for batch, rounds in BATCHES.items():
        times = compare_latency(nets, torch.randn(batch, *image_shape), rounds)
        found[f"ms_batch_{batch}"] = median(times[VARIANT])
        found[f"speedup_batch_{batch}"] = speedup(times[VARIANT], times["dense"])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
