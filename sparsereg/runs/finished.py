"""Finding the finished run of a configuration, so that a sweep started again does only the rest.

No torch here: a job with nothing to do ends within a second.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig

from sparsereg.commands.comparable import comparable
from sparsereg.commands.resume import finetune_settings, replayable
from sparsereg.commands.settings import to_plain
from sparsereg.runs.folder import compact_folder, number, read_config, read_json, started_with


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
            cut = compact_folder(folder / "checkpoints" / "last.ckpt", cfg.round_to) / "compact.pt"
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
            results = read_json(folder / "summary.json")
            yield folder, started_with(read_config(folder)), results
        except (OSError, ValueError, yaml.YAMLError):
            continue  # what it was, or how it ended, cannot be read: it does not count
