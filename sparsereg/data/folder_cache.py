"""Splits in one file, built once and rebuilt when the data changed or the file is broken."""

from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from sparsereg.data.pipeline import LabelledImages, Splits
from sparsereg.errors import UserError
from sparsereg.files import find_damage, replacing


def load_or_build(folder: Path, state: str, settings: str, build: Callable[[], Splits]) -> Splits:
    """The splits from `folder`, or from `build()`, which are then kept there.

    Args:
        folder: of this data set alone; created when there is something to write.
        state: changes with the data; files of other states are deleted.
        settings: what else the splits depend on.

    Raises:
        UserError: if `folder` cannot be written; whatever `build` raises.
    """
    path = folder / f"{state}-{settings}.pt"
    splits = _load(path)
    if splits is None:
        with _lock(folder):
            splits = _load(path)  # another process may have built it meanwhile
            if splits is None:
                splits = build()
                _save(splits, path)
                _remove_stale(folder, state)
    return splits


def _load(path: Path) -> Splits | None:
    """None if the file is absent or broken."""
    if not path.is_file() or find_damage(path):
        return None
    try:
        plain = torch.load(path, weights_only=True)
        parts = {name: LabelledImages(*plain.pop(name)) for name in ("train", "val", "test")}
        return Splits(**parts, **plain)
    except Exception:  # a broken pickle can raise nearly anything
        return None


def _save(splits: Splits, path: Path) -> None:
    parts = {name: tuple(getattr(splits, name)) for name in ("train", "val", "test")}
    try:
        with replacing(path) as file:
            torch.save({**vars(splits), **parts}, file)
    except (UserError, RuntimeError) as error:  # torch.save: RuntimeError on a full disk
        raise _unwritable(path.parent, error) from error


def _remove_stale(folder: Path, state: str) -> None:
    for file in folder.iterdir():
        if file.suffix == ".tmp" or (file.suffix == ".pt" and not file.name.startswith(state)):
            file.unlink()


def _lock(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "lock").acquire()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"cannot keep the decoded images in {folder} ({error}); "
        "set data.cache_dir to a folder that can be written"
    )
