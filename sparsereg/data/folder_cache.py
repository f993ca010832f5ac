"""Splits in one file, built once and rebuilt when the data changed or the file is broken."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from sparsereg.checkpoint import is_whole
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
        splits = Splits(**parts, **plain)
        return splits if is_sound(splits) else None
    except Exception:  # a broken pickle can raise nearly anything
        return None


def is_sound(splits: Splits) -> bool:
    """Are these images of one size, with their labels, and numbers to normalise them by?"""
    parts = (splits.train, splits.val, splits.test)
    sizes = {tuple(part.images.shape[1:]) for part in parts}
    images = all(p.images.dtype == torch.uint8 and is_whole(p.images) for p in parts)
    labels = all(p.labels.dtype == torch.int64 and is_whole(p.labels) for p in parts)
    return (
        (images and labels and len(sizes) == 1 and {len(size) for size in sizes} == {3})
        and all(len(p.images) == len(p.labels) > 0 for p in parts)
        and all(p.labels.min() >= 0 and p.labels.max() < len(splits.classes) for p in parts)
        and all(isinstance(name, str) for name in splits.classes)
        and all(math.isfinite(m) and s > 0 for m, s in zip(splits.mean, splits.std, strict=True))
        and len(splits.mean) == 3
    )


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
