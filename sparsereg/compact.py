"""Front door: a gated network without its closed channels, folded, and from a file."""

import sys
from pathlib import Path

from torch import nn

from sparsereg import CallableModule
from sparsereg.checkpoint import is_compact, load, read_checkpoint
from sparsereg.errors import UserError
from sparsereg.surgery.compaction import compact, without_gates
from sparsereg.surgery.cut import Collapsed
from sparsereg.surgery.folding import fold

__all__ = ["Collapsed", "compact", "fold", "load_compact", "without_gates"]

sys.modules[__name__].__class__ = CallableModule  # `sparsereg.compact(net)` works too


def load_compact(path: str | Path) -> nn.Module:
    """The network of a compact file, in eval mode on the CPU, from this file alone.

    Raises:
        UserError: missing, damaged or foreign file, or a checkpoint that is not compact.
    """
    if not is_compact(read_checkpoint(path)):
        raise UserError(f"{path} is not cut yet: python compact.py ckpt_path={path}")
    return load(path)
