"""Finding the finished run of a configuration, so that a sweep started again does only the rest.

No torch here: a job with nothing to do ends within a second.
"""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from sparsereg.choices import ROUNDINGS
from sparsereg.commands.comparable import comparable
from sparsereg.commands.resume import finetune_settings
from sparsereg.commands.settings import Role, roles_of, to_plain
from sparsereg.errors import printable
from sparsereg.runs.folder import (
    compact_folder,
    is_result,
    number,
    read_config,
    read_json,
    run_of,
    started_with,
)


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
    roundings = ROUNDINGS if cfg.round_to == "auto" else [cfg.round_to]
    files = [compact_folder(last, number) / "compact.pt" for number in roundings]
    found = (find_finished(finetune_settings(cfg, file)) for file in files)
    return next((results for results in found if results), None)


def dense_run(cfg: DictConfig) -> tuple[Path, dict] | None:
    """(folder, results) of the network that a run with gates compares with, finished and without
    gates: the run whose weights it starts with, on the same data, or the newest one with the same
    settings else."""
    if cfg.without_using_gate:
        return None
    wanted, root = apart_from_gates(to_plain(cfg)), Path(cfg.output_dir) / "lightning_logs"
    if cfg.ckpt_path is not None:
        root = run_of(cfg.ckpt_path).parent
    for folder, config, results in finished_runs(root):
        has_accuracies = all(is_result(results.get(key)) for key in ("val_acc", "test_acc"))
        if not config.get("without_using_gate") or not has_accuracies:
            continue
        found = apart_from_gates(config)
        is_start = cfg.ckpt_path is not None and folder.resolve() == run_of(cfg.ckpt_path)
        on_same = all(found.get(k) == wanted.get(k) for k in ("data", "data.name", "data.root"))
        if found == wanted or (is_start and on_same):
            return folder, results
    return None


def apart_from_gates(config: dict) -> dict:
    """What decides the result of a run without gates."""
    about_gates = {"without_using_gate", "model.without_using_gate", "finetune_epochs"}
    settings = comparable(config).items()
    return {
        key: value
        for key, value in settings
        if Role.OF_GATES not in roles_of(key) and key not in about_gates
    }


def is_finished(cfg: DictConfig) -> bool:
    """Has the run of `cfg.ckpt_path` all its results, those after the cut too?"""
    checkpoint = Path(cfg.ckpt_path).absolute()
    if not (checkpoint.parents[1] / "summary.json").exists():
        return False
    return (
        not cfg.finetune_epochs
        or find_finetuned(cfg, checkpoint.with_name("last.ckpt")) is not None
    )


def unfinished_runs(root: Path) -> Iterator[tuple[Path, dict]]:
    """(folder, settings) of the runs that have not ended, the newest first."""
    folders = [path.parent for path in root.glob("version_*/config.yaml")]
    folders = [f for f in folders if number(f).isdigit() and not (f / "summary.json").exists()]
    for folder in sorted(folders, key=lambda folder: int(number(folder)), reverse=True):
        try:
            yield folder, read_config(folder)
        except (OSError, ValueError):
            continue


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
