"""Measures the speed of training and inference, prints tables, and keeps the numbers as JSON.

    python -m benchmarks                # all that takes less than ten minutes on two cores
    python -m benchmarks steps data     # only these
    python -m benchmarks compiled       # torch.compile on a CPU: a minute of compilation

The numbers go to benchmarks/results/DEVICE.json; parts that are not measured now stay in it.
"""

import json
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.measure import DEVICE
from benchmarks.tables import print_table
from sparsereg.commands.memory import keep_buffers
from sparsereg.export.latency import machine

PARTS = {  # name: module and function
    "ops": "benchmarks.ops:run",
    "steps": "benchmarks.steps:run",
    "data": "benchmarks.data:run",
    "epoch": "benchmarks.epoch:run",
    "startup": "benchmarks.startup:run",
    "scaling": "benchmarks.scaling:run",
    "sweep": "benchmarks.sweep:run",
    "inference": "benchmarks.compact:run",
    "compiled": "benchmarks.steps:run_compiled",
}
RESULTS = Path(__file__).parent / "results"


def measure(part: str, **settings) -> dict:
    """The tables of a part, with what they were measured on."""
    torch.manual_seed(0)
    module, function = PARTS[part].split(":")
    start = time.perf_counter()
    tables = getattr(import_module(module), function)(**settings)
    return {"machine": machine(), "seconds": time.perf_counter() - start, "tables": tables}


def main(parts: list[str], file: Path = RESULTS / f"{DEVICE}.json", settings: dict | None = None):
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        sys.exit(f"error: unknown part '{unknown[0]}'; there are: {', '.join(PARTS)}")
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    keep_buffers()  # as train.py does
    print(machine())
    for part in parts or [part for part in PARTS if part != "compiled"]:
        results[part] = measure(part, **(settings or {}).get(part, {}))
        for table in results[part]["tables"]:
            print_table(table)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
