"""Finding the finished run of a configuration, so that a sweep started again does only the rest.

No torch here: a job with nothing to do ends within a second.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig

from sparsereg.commands.comparable import flatten
from sparsereg.commands.resume import finetune_settings, replayable
from sparsereg.commands.settings import to_plain

# Settings that leave the result as it is: they say what is shown, and where things are kept.
NO_EFFECT = {
    "skip_finished",
    "output_dir",
    "data.cache_dir",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.profiler",
}


def finished_run(cfg: DictConfig, overrides: list[str]) -> dict | None:
    """Results of the newest finished run with these settings, named in a line; None without one.

    A run that was stopped and resumed counts as one run. With `finetune_epochs` it is finished
    when the training of the cut network is.
    """
    wanted = comparable(to_plain(cfg))
    for folder, config, results in finished_runs(Path(cfg.output_dir) / "lightning_logs"):
        if comparable(config) != wanted:
            continue
        if cfg.finetune_epochs:
            suffix = f"_{cfg.round_to}" if cfg.round_to > 1 else ""
            cut = folder / "checkpoints" / f"last_compact{suffix}" / "compact.pt"
            finetuning = finetune_settings(cfg, replayable(overrides, to_plain(cfg)), cut)
            if finetuned := finished_run(*finetuning):
                return finetuned
            continue
        print(f"skipped: {folder} is finished and has the same settings", flush=True)
        return results
    return None


def finished_runs(root: Path) -> Iterator[tuple[Path, dict, dict]]:
    """(folder, settings, results) of the runs that have ended, the newest first."""
    ended = [path.parent for path in root.glob("version_*/summary.json")]
    ended = [folder for folder in ended if number(folder).isdigit()]
    for folder in sorted(ended, key=lambda folder: int(number(folder)), reverse=True):
        try:
            results = json.loads((folder / "summary.json").read_text())
            yield folder, started_with(load_yaml(folder / "config.yaml")), results
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            continue  # what it was, or how it ended, cannot be read: it does not count


def number(folder: Path) -> str:
    return folder.name.removeprefix("version_")


def load_yaml(path: Path) -> dict:
    with open(path) as file:
        return yaml.load(file, yaml.CSafeLoader)  # ten times as fast as the one in Python


def started_with(config: dict) -> dict:
    """Settings of a run; of one that was resumed, with the checkpoint its first part began with."""
    if not config["resume_training"]:
        return config
    before = started_with(load_yaml(Path(config["ckpt_path"]).parents[1] / "config.yaml"))
    return config | {key: before[key] for key in ("ckpt_path", "resume_training", "model")}


def comparable(config: dict) -> dict:
    """What decides the result: {dotted key: value}, classes by name, without NO_EFFECT."""
    flat = flatten({key: value for key, value in config.items() if key != "logger"})
    if flat.get("ckpt_path") is not None:
        flat["ckpt_path"] = str(Path(flat["ckpt_path"]).resolve())
    return {key: value for key, value in flat.items() if key not in NO_EFFECT}
