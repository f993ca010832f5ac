"""Runs of train.py that are trained once, and go on where they were stopped."""

import subprocess
import sys
from pathlib import Path

from sparsereg.commands.settings import Role, settings_with
from sparsereg.errors import UserError

ROOT = Path(__file__).parent.parent


def train(folder: Path, *settings: str) -> Path:
    """The finished run in a folder of runs, which is trained, or trained on, unless it is there.

    A run that was stopped has the settings of its checkpoint, and the teacher, data folder and
    devices that are named here. What train.py prints is added to FOLDER/train.log.

    Args:
        folder: below `ROOT`; its runs are FOLDER/lightning_logs/version_N.
        settings: of train.py.

    Returns:
        Its folder version_N, below `ROOT`.

    Raises:
        UserError: train.py failed.
    """
    if not is_finished(folder):
        stopped = [run for run in versions(folder) if (ROOT / checkpoint(run, "last")).exists()]
        if stopped:
            last = checkpoint(stopped[-1], "last")
            again = tuple(f"{key}=" for key in settings_with(Role.AGAIN))  # no file decides them
            kept = [setting for setting in settings if setting.startswith(again)]
            settings = (f"ckpt_path={last}", "resume_training=true", *kept)
        print(f"training {folder}{' on' if stopped else ''}", flush=True)
        start(folder, *settings)
    *_, run = finished(folder)
    return run


def start(folder: Path, *settings: str) -> None:
    command = [sys.executable, "train.py", *settings, f"output_dir={folder}"]
    command.append("trainer.enable_progress_bar=false")
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    with open(ROOT / folder / "train.log", "a") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(said[-1] if said else f"train.py ended with {done.returncode}")


def versions(folder: Path) -> list[Path]:
    runs = [run.relative_to(ROOT) for run in (ROOT / folder).glob("lightning_logs/version_*")]
    return sorted(runs, key=lambda run: int(run.name.removeprefix("version_")))


def finished(folder: Path) -> list[Path]:
    return [run for run in versions(folder) if (ROOT / run / "summary.json").exists()]


def is_finished(folder: Path) -> bool:
    return bool(finished(folder))


def checkpoint(run: Path, name: str = "best") -> Path:
    return run / "checkpoints" / f"{name}.ckpt"


def cut_network(path: Path) -> Path:
    """The compact file of a checkpoint, both below `ROOT`."""
    from sparsereg.export.formats import cut_file  # imports take seconds

    return cut_file(ROOT / path).relative_to(ROOT)
