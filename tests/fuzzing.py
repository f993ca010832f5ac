"""Mutates valid files of others at random, and reads each: only a UserError may come out, nothing
outside the file's folder is opened or written, no socket, no process.

    PYTHONPATH=. python tests/fuzzing.py MUTATIONS SEED
"""

import argparse
import copy
import functools
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from mutations import flip_bytes, mutate
from omegaconf import DictConfig
from torch import nn

from sparsereg.checkpoint import load, read_checkpoint
from sparsereg.commands import overrides, resume
from sparsereg.commands.overrides import CONFIG
from sparsereg.commands.settings import to_plain
from sparsereg.compact import compact, load_compact
from sparsereg.data.folder_cache import load_or_build
from sparsereg.data.pipeline import LabelledImages, Splits
from sparsereg.errors import UserError
from sparsereg.model.layers import BatchNorm
from sparsereg.networks import new_network
from sparsereg.runs.find import find_runs
from sparsereg.runs.records import write_records
from sparsereg.runs.start_checks import check_resumable
from sparsereg.runs.table import group_seeds, markdown, rich_table, table
from sparsereg.sparsity.size import count
from sparsereg.surgery.plain_graph import describe

SECONDS = 20  # that one file may take
SHAPE = (3, 28, 28)


@functools.lru_cache
def from_config(overrides: tuple[str, ...]) -> DictConfig:
    return compose("train", overrides=[*overrides])


def composed(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """As Hydra's, which takes longer than all the rest."""
    return copy.deepcopy(from_config(tuple(overrides)))


def small_net() -> nn.Module:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    layers = (conv, BatchNorm(4), nn.ReLU(), nn.MaxPool2d(2), *head)
    return compact(nn.Sequential(*layers), image_shape=SHAPE)


def record_of(network: dict, config: dict) -> dict:
    data = {"classes": [*"0123456789"], "mean": [0.5] * 3, "std": [0.3] * 3}
    data["image_shape"] = [*SHAPE]
    return {"overrides": ["seed=1"], "config": config, "network": network, "data": data}


class Files:
    """Valid files, and how each kind is read."""

    def __init__(self, folder: Path):
        self.folder = folder
        settings = ["model=lenet5", "data=digits", "without_using_gate=true"]
        self.config = to_plain(compose("train", overrides=settings))
        self.cfg = compose("train", overrides=["ckpt_path=x", "resume_training=true"])
        net = small_net()
        state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
        network = describe(net) | {"dense": count(net, SHAPE)}
        self.compact = {"state_dict": state, "sparsereg": record_of(network, self.config)}
        plain = {"library": "sparsereg", "name": "lenet5", "without_using_gate": True}
        plain |= {"num_classes": 10, "include": "*", "exclude": []}
        lenet = new_network(**plain)
        state = {f"net.{name}": tensor for name, tensor in lenet.state_dict().items()}
        done = {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}}
        self.checkpoint = {"state_dict": state, "loops": done}
        self.checkpoint["sparsereg"] = record_of(plain, self.config)
        results = {"val_acc": 0.9, "test_acc": 0.8, "sparsity": 0.5, "params": 10, "macs": 20}
        results |= {"L_C0": 0.4, "dense_params": 20, "dense_macs": 40, "train_seconds": 3.0}
        self.summary = results | {"checkpoint": "checkpoints/best.ckpt", "open_channels": {"a": 1}}
        images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
        part = LabelledImages(images, torch.tensor([0, 1, 0, 1, 0, 1]))
        self.splits = Splits(part, part, part, ["a", "b"], (0.5,) * 3, (0.3,) * 3)
        parts = {name: tuple(part) for name in ("train", "val", "test")}
        self.cache = {**vars(self.splits), **parts}
        for read, content in ((load_compact, self.compact), (load, self.checkpoint)):
            torch.save(content, path := self.folder / "file.pt")
            read(path)  # else nothing but refusals would be tried

    def save(self, content: Any, random_: random.Random) -> Path:
        path = self.folder / "file.pt"
        torch.save(mutate(content, random_), path)
        if random_.random() < 0.1:
            path.write_bytes(flip_bytes(path.read_bytes(), random_))
        return path

    def read_compact(self, random_: random.Random) -> None:
        load_compact(self.save(self.compact, random_))(torch.zeros(1, *SHAPE))

    def read_network(self, random_: random.Random) -> None:
        load(self.save(self.checkpoint, random_))

    def read_settings(self, random_: random.Random) -> None:
        whole = self.checkpoint | {"sparsereg": {**self.checkpoint["sparsereg"]}}
        whole["state_dict"] = {}
        part = random_.choice(("config", "config", "overrides", "data"))
        whole["sparsereg"][part] = mutate(whole["sparsereg"][part], random_)
        path = self.folder / "file.pt"
        torch.save(whole, path)
        checkpoint = read_checkpoint(path)
        cfg = resume.settings_of(checkpoint, self.cfg)
        cfg.ckpt_path = str(path)
        to_plain(cfg)
        resume.check_settings(cfg, [])
        check_resumable(checkpoint, cfg, is_finished=False)

    def read_runs(self, random_: random.Random) -> None:
        run = self.folder / "runs" / "lightning_logs" / "version_0"
        (run / "checkpoints" / "best_compact").mkdir(parents=True, exist_ok=True)
        times = dict.fromkeys(("ms_batch_1", "speedup_batch_1", "ms_batch_128"), 1.0)
        latency = {"variants": {"compact folded": times | {"speedup_batch_128": 1.0}}}
        files = {"config.yaml": self.config, "summary.json": self.summary}
        files["checkpoints/best_compact/report.json"] = latency
        changed = random_.choice([*files])
        for name, content in files.items():
            content = mutate(content, random_) if name == changed else content
            text = as_text(content, name)
            if name == changed and random_.random() < 0.3:
                text = flip_bytes(text, random_)
            (run / name).write_bytes(text)
        runs = find_runs([str(self.folder / "runs")])
        rows = group_seeds(runs)
        markdown(table(rows)), rich_table(rows)
        write_records(runs, self.folder / "runs" / "record.csv")
        record = self.folder / "runs" / "record.csv"
        if record.exists():
            record.write_bytes(flip_bytes(record.read_bytes(), random_))
            find_runs([str(self.folder / "runs")])
            for file in (self.folder / "runs").glob("*.csv"):
                file.unlink()

    def read_cache(self, random_: random.Random) -> None:
        folder = self.folder / "cache"
        folder.mkdir(exist_ok=True)
        self.save(self.cache, random_).replace(folder / "state-settings.pt")
        splits = load_or_build(folder, "state", "settings", lambda: self.splits)
        assert splits.train.labels.max() < len(splits.classes), "labels without a class"


def as_text(content: Any, name: str) -> bytes:
    if name.endswith("json"):
        return json.dumps(content, default=str).encode()
    try:
        return yaml.dump(content, Dumper=yaml.CDumper).encode()
    except UnicodeEncodeError:  # half a character, which JSON writes as an escape, and YAML reads
        return json.dumps(content, default=str).encode()


KINDS: dict[str, Callable] = {
    "compact file": Files.read_compact,
    "checkpoint's network": Files.read_network,
    "checkpoint's settings": Files.read_settings,
    "run folder": Files.read_runs,
    "cache": Files.read_cache,
}
READABLE = (
    sys.prefix,
    sys.base_prefix,
    str(CONFIG.parent),
    "/proc/",
    "/sys/",
    "/usr/",
    "/dev/null",
)
FORBIDDEN = ("socket.connect", "socket.bind", "socket.sendto", "subprocess.Popen", "os.system")
FORBIDDEN += ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn")


class Watch:
    """An audit hook, which Python cannot take out again: it only looks while it is on."""

    def __init__(self, folder: Path):
        self.folder, self.on, self.seen = str(folder), False, []
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments}")
        elif event in ("open", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink"):
            path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
            if event == "open" and isinstance(arguments[0], int):
                return
            inside = os.path.abspath(path).startswith(self.folder)
            writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
            if not inside and (writes or not os.path.abspath(path).startswith(READABLE)):
                self.seen.append(f"{event} {path}")


def too_long(signum: int, frame) -> None:
    raise TimeoutError(f"not done after {SECONDS} s")


def fuzz(mutations: int, seed: int, seconds: float = math.inf) -> tuple[Counter, list[str]]:
    """Reads so many mutated files, or as many as there is time for.

    Returns:
        How often each kind was read and refused, and what should not have happened.
    """
    counts, wrong = Counter(), []
    torch.manual_seed(seed)
    signal.signal(signal.SIGALRM, too_long)
    for module in (resume, overrides):
        module.typed = lambda: []  # nothing is typed here
        module.compose = composed
    end = time.monotonic() + seconds
    with (
        tempfile.TemporaryDirectory() as name,
        initialize_config_dir(str(CONFIG), version_base="1.3"),
    ):
        folder = Path(name).resolve()
        files, watch = Files(folder), Watch(folder)
        for number in range(mutations):
            if time.monotonic() > end:
                break
            kind = list(KINDS)[number % len(KINDS)]
            random_ = random.Random(f"{seed} {number}")  # each file by its number alone
            signal.alarm(SECONDS)
            watch.on = number >= 2 * len(KINDS)  # the first of each import what they need
            try:
                KINDS[kind](files, random_)
                counts[f"{kind}: read"] += 1
            except UserError:
                counts[f"{kind}: refused"] += 1
            except Exception as error:
                wrong.append(f"{number}, {kind}: {type(error).__name__}: {str(error)[:200]}")
                print(wrong[-1], flush=True)
            finally:
                watch.on = False
                signal.alarm(0)
            if number % 1000 == 999:
                print(f"{number + 1} files, {len(wrong)} wrong", flush=True)
            if watch.seen:
                wrong += [f"{number}, {kind}: {seen}" for seen in watch.seen]
                print(*watch.seen, sep="\n", flush=True)
                watch.seen.clear()
    return counts, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mutations", type=int)
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    counts, wrong = fuzz(arguments.mutations, arguments.seed)
    for kind, number in sorted(counts.items()):
        print(f"{kind} {number}")
    print(f"{sum(counts.values())} files, {len(wrong)} wrong")
    sys.exit(bool(wrong))
