"""Seconds from the prompt to the last line of the commands, on scikit-learn's digits."""

import functools
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import quartiles, take_turns
from sparsereg.commands.overrides import CONFIG

ONE_STEP = ("trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
TEST, HELP = "python test.py", "python train.py --help"


def seconds(*command: str) -> float:
    """Until its last line; leaving Python takes another second."""
    start = last = time.perf_counter()
    arguments = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "cwd": CONFIG.parents[1]}
    with subprocess.Popen([sys.executable, "-u", *command], **arguments) as process:
        for _ in process.stdout:
            last = time.perf_counter()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return last - start


def run(rounds: int = 5) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        seconds("train.py", "data=digits", *ONE_STEP, f"output_dir={folder}")
        checkpoint = f"{folder}/lightning_logs/version_0/checkpoints/last.ckpt"
        ways = {
            TEST: functools.partial(seconds, "test.py", f"ckpt_path={checkpoint}"),
            HELP: functools.partial(seconds, "train.py", "--help"),
        }
        found = take_turns(ways, rounds)
    rows = [{"way": name, "s": quartiles(own)} for name, own in found.items()]
    return [{"title": f"From the prompt to the last line, {rounds} rounds", "rows": rows}]
