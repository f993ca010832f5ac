"""Files that no crash destroys; and is this one whole? No torch: a mistake shows at once."""

import os
import stat
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sparsereg.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end.

    After a crash at any moment, `path` holds the old content or the new, never a part.

    Of several writers of one file each has a temporary file of its own; the last one wins.

    Raises:
        UserError: it cannot be written; the earlier file is intact.
    """
    # beside it: a rename is atomic within one disk
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        kept = "; the file saved before is intact" if path.exists() else ""
        raise UserError(f"cannot save {path}: {error.strerror}{kept}") from error


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Write all of `content`, see `replacing`; text as UTF-8, with escapes for what that lacks."""
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    with replacing(path) as file:
        file.write(content)


def read_text(path: Path, most: int = 2**28) -> str:
    """The text of a regular file: nothing that waits (a FIFO), or has no end, is read.

    Raises:
        OSError, ValueError: it cannot be read, is no file, larger than `most` bytes, or no UTF-8.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is no regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"is larger than {most} bytes")
    return content.decode("utf-8")


def check_checkpoint_file(path: str | Path, key: str = "ckpt_path") -> None:
    """Raise UserError unless `path` is a complete, undamaged file as written by torch.save."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{key}={path} does not exist")
    if path.is_dir():
        raise UserError(f"{key}={path} is a folder; name the checkpoint in it")
    if not path.is_file():
        raise UserError(f"{key}={path} is no file; name a checkpoint")
    if path.stat().st_size == 0:
        raise UserError(f"{key}={path} is empty; use another checkpoint of the run")
    if not is_archive(path):
        raise UserError(f"{key}={path} is not a checkpoint, or only the beginning of one")
    if damage := find_damage(path):
        raise UserError(f"{key}={path} is damaged ({damage}); use another checkpoint")


def is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # parts of the end of an archive, and no whole
        return False


def find_damage(path: Path) -> str | None:
    """What is wrong with a file of torch.save, None if it is whole: torch.load alone would read
    weights with flipped bits without a word, so their checksums are compared here."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                return "compressed, as torch never saves: it could be larger than any memory"
            damaged = archive.testzip()
    # zipfile raises NotImplementedError where damage looks like an unknown compression
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        return str(error)
    return f"checksum of {damaged}" if damaged else None
