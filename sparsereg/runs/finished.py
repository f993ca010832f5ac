"""Finding the finished run of a configuration, so that a sweep started again does only the rest.

No torch here: a job with nothing to do ends within a second.
"""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from sparsereg.commands.comparable import comparable
from sparsereg.commands.resume import finetune_settings
from sparsereg.commands.settings import to_plain
from sparsereg.errors import printable
from sparsereg.runs.folder import compact_folder, number, read_config, read_json, started_with


def finished_run(cfg: DictConfig) -> dict | None:
    """Results of the newest finished run with these settings, named in a line; None without one.

    A run that was stopped and resumed counts as one run. With `finetune_epochs` it is finished
    when the training of the cut network is.
    """
    found = find_finished(cfg)
    if found is None:
        return None
    folder, results = found
    print(printable(f"skipped: {folder} is finished and has the same settings"), flush=True)
    return results


def find_finished(cfg: DictConfig) -> tuple[Path, dict] | None:
    wanted = comparable(to_plain(cfg))
    for folder, config, results in finished_runs(Path(cfg.output_dir) / "lightning_logs"):
        if comparable(config) == wanted:
            found = (folder, results)
            if cfg.finetune_epochs:
                found = find_finetuned(cfg, folder / "checkpoints" / "last.ckpt")
            if found:
                return found
    return None


def find_finetuned(cfg: DictConfig, last: Path) -> tuple[Path, dict] | None:
    """The finished training of the network that was cut from a checkpoint."""
    return find_finished(finetune_settings(cfg, compact_folder(last, cfg.round_to) / "compact.pt"))


def is_finished(cfg: DictConfig) -> bool:
    """Has the run of `cfg.ckpt_path` all its results, those after the cut too?"""
    checkpoint = Path(cfg.ckpt_path).absolute()
    if not (checkpoint.parents[1] / "summary.json").exists():
        return False
    return (
        not cfg.finetune_epochs
        or find_finetuned(cfg, checkpoint.with_name("last.ckpt")) is not None
    )


def finished_runs(root: Path) -> Iterator[tuple[Path, dict, dict]]:
    """(folder, settings, results) of the runs that have ended, the newest first."""
    ended = [path.parent for path in root.glob("version_*/summary.json")]
    ended = [folder for folder in ended if number(folder).isdigit()]
    for folder in sorted(ended, key=lambda folder: int(number(folder)), reverse=True):
        try:
            results = read_json(folder / "summary.json")
            yield folder, started_with(read_config(folder), folder, [root]), results
        except (OSError, ValueError):
            continue  # what it was, or how it ended, cannot be read: it does not count
