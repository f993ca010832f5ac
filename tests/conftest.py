"""Running train.py and test.py as a user does, in this process or in one of their own."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hydra._internal.hydra import Hydra
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
SHORT = (  # a run of a few seconds; each test adds what it is about
    "data=digits",
    "data.batch_size=32",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "trainer.precision=32-true",  # the same numbers on every processor
)
QUIET = {  # of a Trainer that a test makes itself
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
SMALL = (*SHORT, "model=lenet5")  # a fifth of the time, for what is not about GoogleNet
TEACHABLE = (*SMALL, "trainer.limit_train_batches=39", "optimizer.lr=3e-3")  # it learns something
TIPS = re.compile("💡|[Tt]ip:|[Ww]arning|WARNING|INFO|it/s|v_num")

torch.set_num_threads(1)  # two test processes share two cores
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long ones first, so that no process ends long after the other; each file as a
    whole, or what its tests share would be made twice."""
    long = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in long)


@dataclass
class Result:
    code: int
    out: str
    err: str
    seconds: float  # of CPU time, which other work on the machine does not change


def launch(script: str, *arguments: str, **options) -> subprocess.Popen:
    """Start train.py or test.py in a process of its own."""
    command = [sys.executable, str(ROOT / script), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, bufsize=1, **pipes, **options)


def run_process(script: str, *arguments: str, **options) -> Result:
    start = seconds_of_children()
    process = launch(script, *arguments, start_new_session=True, **options)
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"{script} had not ended after 240 s:\n{out}\n{err}")
    return Result(process.returncode, out, err, seconds_of_children() - start)


def seconds_of_children() -> float:
    """CPU time of all processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def assert_one_line(result: Result, *words: str) -> None:
    assert result.code == 1, result.out + result.err
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    assert "Error in call" not in lines[0], "Hydra's wording, not ours"
    for word in words:
        assert word in lines[0], lines[0]


def assert_quiet(result: Result) -> None:
    """It has worked, and said nothing that is not the user's to mend: no tips, no logs."""
    assert result.code == 0, result.err
    assert result.err == "" and not TIPS.search(result.out), result.out + result.err


def run_here(script: str, *arguments: str) -> int:
    """Exit code of a script that runs in this process, which saves the seconds of the imports, and
    of composing the settings once more for `hydra.mode`, which nothing here sets."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    no_mode = patch.object(Hydra, "get_mode", lambda *_, **__: None)  # it is -m or not
    try:
        with no_mode, patch.object(sys, "argv", [script, *arguments]):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return 0


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights and gates that a test draws are the same each time, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def command(capfd):
    """`run_here` with what it prints."""

    def run(script: str, *arguments: str) -> Result:
        start = time.process_time()
        code = run_here(script, *arguments)
        return Result(code, *capfd.readouterr(), time.process_time() - start)

    return run


def run_folder(output_dir: Path, version: int = 0) -> Path:
    return output_dir / "lightning_logs" / f"version_{version}"


def summary(output_dir: Path, version: int = 0) -> dict:
    return json.loads((run_folder(output_dir, version) / "summary.json").read_text())


def checkpoint_path(output_dir: Path, version: int = 0, name: str = "last.ckpt") -> Path:
    return run_folder(output_dir, version) / "checkpoints" / name


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> dict[str, Path]:
    """last.ckpt of a short gated and a short ungated run on the digits."""
    paths = {}
    for name, ungated in (("gated", "false"), ("ungated", "true")):
        folder = tmp_path_factory.mktemp(name)
        settings = (f"without_using_gate={ungated}", f"output_dir={folder}")
        assert run_here("train.py", *SHORT, *settings) == 0
        paths[name] = checkpoint_path(folder)
    return paths


@pytest.fixture(scope="session")
def lenet5(tmp_path_factory) -> Path:
    """last.ckpt of a short gated run of LeNet-5, for what is not about GoogleNet."""
    folder = tmp_path_factory.mktemp("lenet5")
    assert run_here("train.py", *SMALL, f"output_dir={folder}") == 0
    return checkpoint_path(folder)


@pytest.fixture(scope="session")
def dense(tmp_path_factory) -> Path:
    """Checkpoint of a network without gates that has learnt something."""
    folder = tmp_path_factory.mktemp("dense")
    length = ("trainer.max_epochs=2", "without_using_gate=true", f"output_dir={folder}")
    assert run_here("train.py", *TEACHABLE, *length) == 0
    return checkpoint_path(folder, name="best.ckpt")


@pytest.fixture(scope="session")
def pruned(trained, tmp_path_factory) -> Path:
    """The gated checkpoint with about half of its channels closed, and one branch altogether."""
    path = tmp_path_factory.mktemp("pruned") / "best.ckpt"
    return close_gates(trained["gated"], path, branch="block3.gates.5x5")


def close_gates(checkpoint: Path, path: Path, branch: str = "none") -> Path:
    """Write the checkpoint to `path` with other gates, about half of them closed."""
    content = torch.load(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in content["state_dict"].items():
        if name.endswith("qz_loga"):
            tensor.normal_(-2, 2, generator=generator)
        if name.endswith(f"{branch}.qz_loga"):
            tensor.fill_(-5)
    torch.save(content, path)
    return path
