"""Front door: a gated network without its closed channels, folded, and from a file."""

from pathlib import Path

from torch import nn

from sparsereg.checkpoint import is_compact, load_weights, new_network, read_checkpoint
from sparsereg.errors import UserError
from sparsereg.surgery.compaction import compact, without_gates
from sparsereg.surgery.cut import Collapsed
from sparsereg.surgery.folding import fold

__all__ = ["Collapsed", "compact", "fold", "load_compact", "without_gates"]


def load_compact(path: str | Path) -> nn.Module:
    """The network of a compact file, in eval mode on the CPU, from this file alone.

    Raises:
        UserError: missing, damaged or foreign file, or a checkpoint that is not compact.
    """
    checkpoint = read_checkpoint(path)
    if not is_compact(checkpoint):
        raise UserError(f"{path} is not cut yet: python compact.py ckpt_path={path}")
    net = new_network(checkpoint)
    load_weights(net, checkpoint)
    return net.eval()
