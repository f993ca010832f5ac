"""Puts the network of a finished run into models/, where it is part of the repository.

    python -m experiments.models RUN googlenet_064                RUN: a folder version_N
    python -m experiments.models RUN lenet5 --data mnist

models/NAME.pt is a compact file, of a dense network a checkpoint that gates can be put into
(test.py, train.py and `sparsereg.load` take both). It brings along the first test images and their
logits, by which it is checked without the data set.
models/records.csv holds all settings and results of the runs.
"""

import argparse
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from sparsereg.checkpoint import is_compact, is_gated, load, read_checkpoint, write_checkpoint
from sparsereg.commands.overrides import CONFIG
from sparsereg.commands.settings import to_plain
from sparsereg.data.augment import normalize, to_float
from sparsereg.errors import UserError
from sparsereg.export.formats import cut_file
from sparsereg.runs.find import find_runs
from sparsereg.runs.records import Run, read_records, write_records

MODELS = Path(__file__).parent.parent / "models"
IMAGES = 8  # test images that each file brings along


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Put the network of a run into models/.")
    parser.add_argument("run", type=Path, help="folder version_N of a finished run")
    parser.add_argument("name", help="of the file")
    parser.add_argument("--data", default="cifar10", help="what it was trained on, as data=…")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {keep(options.run, options.name, options.data)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def keep(folder: Path, name: str, data: str) -> Path:
    """Write models/NAME.pt and the run's line in models/records.csv.

    Raises:
        UserError: the run is not finished, or cannot be read.
    """
    [run] = find_runs([str(folder)])
    if run.status != "finished":
        raise UserError(f"{folder} is {run.status}: {run.why}")
    MODELS.mkdir(exist_ok=True)
    path = MODELS / f"{name}.pt"
    content = network_of(Path(run.results["checkpoint"]))  # the one its results are of
    content["sparsereg"] |= {"overrides": [], "config": {"data": settings(data)}}
    write_checkpoint(content, path)
    write_checkpoint(content | {"sample": sample(path, data)}, path)
    add_record(run, name)
    return path


def network_of(path: Path) -> dict:
    """The content of a checkpoint without the state of its training: cut where it has gates, else
    as it is, so that it can be given gates."""
    checkpoint = read_checkpoint(path)
    if is_compact(checkpoint) or is_gated(checkpoint["state_dict"]):
        return read_checkpoint(cut_file(path))
    return {key: checkpoint[key] for key in ("state_dict", "sparsereg", "loops")}


def settings(data: str) -> dict:
    """Of a data set, where nothing else is asked for."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return to_plain(compose("train", overrides=[f"data={data}"]))["data"]


def sample(path: Path, data: str) -> dict[str, torch.Tensor]:
    """The first test images, uint8 (N, C, H, W), and their logits, (N, classes)."""
    source = instantiate(settings(data), _convert_="all")
    source.prepare_data()
    source.setup("test")
    images = source.splits.test.images[:IMAGES].clone()  # not the storage of all of them
    with torch.inference_mode():
        return {"images": images, "logits": load(path)(as_input(images, path)).clone()}


def as_input(images: torch.Tensor, path: Path) -> torch.Tensor:
    """uint8 images as the network of a file takes them."""
    data = read_checkpoint(path)["sparsereg"]["data"]
    return normalize(to_float(images), torch.tensor(data["mean"]), torch.tensor(data["std"]))


def add_record(run: Run, name: str) -> None:
    file = MODELS / "records.csv"
    others = [r for r in read_records(file) if r.name != name] if file.exists() else []
    run.name, run.results["checkpoint"] = name, f"models/{name}.pt"
    write_records(sorted([*others, run], key=lambda r: r.name), file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
