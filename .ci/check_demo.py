"""Fail unless the newest run keeps the README's promise for `make demo`."""

import json
import sys
from pathlib import Path

runs = Path("outputs/train/tblog/lightning_logs").glob("version_*/summary.json")
results = json.loads(max(runs, key=lambda path: path.stat().st_mtime).read_text())
promises = {
    "test accuracy at least 0.98": results["test_acc"] >= 0.98,
    "sparsity at least 0.5": results["sparsity"] >= 0.5,
    "at most 120 s of training": results["train_seconds"] <= 120,
}
for promise, kept in promises.items():
    print(f"{'kept' if kept else 'BROKEN'}: {promise}")
print({key: results[key] for key in ("test_acc", "sparsity", "train_seconds")})
sys.exit(not all(promises.values()))
