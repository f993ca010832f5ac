"""Several runs in a row, each trained once: a command that was stopped goes on where it was."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule
from torch import nn

from sparsereg.checkpoint import is_compact
from sparsereg.commands.comparable import comparable
from sparsereg.commands.resume import finetune_settings
from sparsereg.commands.settings import to_plain
from sparsereg.errors import printable
from sparsereg.export.formats import cut_file
from sparsereg.files import read_text
from sparsereg.runs.finished import find_finished, unfinished_runs
from sparsereg.runs.records import free_name
from sparsereg.runs.start_checks import check_ungated

Train = Callable[..., dict]  # train.py's: settings, what is typed, …


class Runs:
    """Trains with settings that differ in a few values.

    Args:
        cfg: the settings that all have in common.
        train: of train.py.
        test: evaluate on the test set too, after each run.
    """

    def __init__(self, cfg: DictConfig, train: Train, test: bool = True):
        self.cfg, self.train, self.test = cfg, train, test

    def run(self, **changes: Any) -> tuple[Path, dict]:
        """The checkpoint folder and the results of a run, which is trained unless it is there."""
        return self.finish(changed(self.cfg, changes))

    def cut_and_train_on(self, checkpoint: Path, **changes: Any) -> tuple[Path, dict]:
        """The same of the training of the network that is cut from a checkpoint."""
        file = cut_file(checkpoint)
        return self.finish(finetune_settings(changed(self.cfg, changes), file))

    def finish(self, cfg: DictConfig) -> tuple[Path, dict]:
        found = find_finished(cfg)
        if found is None:
            self.train(cfg, [], stopped_run(cfg), self.test, is_last=False)
            found = find_finished(cfg)
        folder, results = found
        return folder / "checkpoints", results


def data_for(cfg: DictConfig, checkpoint: dict | None) -> LightningDataModule:
    """The data of all runs, which start from a checkpoint that can have gates, or from none."""
    if checkpoint is not None and is_compact(checkpoint):
        check_ungated(cfg)
    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    return data


def new_network(cfg: DictConfig, data: LightningDataModule) -> nn.Module:
    """With gates and new weights, as each run has it."""
    shape = list(data.image_shape)
    return instantiate(cfg.model, num_classes=len(data.classes), image_shape=shape)


def keep_earlier(file: Path, same: Callable[[Any], bool], *beside: str) -> None:
    """What another budget has left under this name, as each job of a sweep does, is kept under a
    free one, with the files of the same name that end with `beside`.

    Args:
        file: JSON, about to be written.
        same: is its content from the same runs? It is written anew then.
    """
    try:
        if same(json.loads(read_text(file))):
            return
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # not ours, or damaged
    earlier = free_name(file)
    for end in (file.suffix, *beside):
        if file.with_suffix(end).exists():
            file.with_suffix(end).rename(earlier.with_suffix(end))
    print(printable(f"the earlier {file.name} is now {earlier.name}"), flush=True)


def changed(cfg: DictConfig, changes: dict[str, Any]) -> DictConfig:
    """The settings with other values; `trainer__max_epochs` stands for trainer.max_epochs."""
    cfg = copy.deepcopy(cfg)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False)
    return cfg


def stopped_run(cfg: DictConfig) -> Path | None:
    """The checkpoint from which a run with these settings goes on, if one was stopped."""
    wanted = comparable(to_plain(cfg))
    for folder, config in unfinished_runs(Path(cfg.output_dir) / "lightning_logs"):
        last = folder / "checkpoints" / "last.ckpt"
        if last.exists() and comparable(config) == wanted:
            return last
    return None
