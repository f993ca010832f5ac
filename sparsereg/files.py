"""Is this file a whole checkpoint? Asked without torch, so that a mistake shows at once."""

import zipfile
from pathlib import Path

from sparsereg.errors import UserError


def check_checkpoint_file(path: str | Path, key: str = "ckpt_path") -> None:
    """Raise UserError unless `path` is a complete, undamaged file as written by torch.save.

    torch.load alone would read weights with flipped bits without a word: their checksums are
    compared here.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{key}={path} does not exist")
    if not path.is_file():
        raise UserError(f"{key}={path} is a folder; name the checkpoint in it")
    if path.stat().st_size == 0:
        raise UserError(f"{key}={path} is empty; use another checkpoint of the run")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{key}={path} is not a checkpoint, or only the beginning of one")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    # zipfile raises NotImplementedError where damage looks like an unknown compression
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise UserError(f"{key}={path} is damaged ({error}); use another checkpoint") from None
    if damaged:
        raise UserError(f"{key}={path} is damaged (checksum of {damaged}); use another checkpoint")
