"""From a checkpoint to the file of its cut network: weights and widths, all that is needed to use
it or to train it further."""

from pathlib import Path

from torch import fx

from sparsereg.checkpoint import load, read_checkpoint, save
from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.sparsity.size import dense_size
from sparsereg.surgery.plain_graph import describe


def cut_file(path: str | Path, round_to: int = 1) -> Path:
    """Write compact.pt into a folder beside the checkpoint `path`, and return its path.

    The folder is named after the checkpoint, best_compact beside best.ckpt, or best_compact_8 with
    `round_to=8`.

    Raises:
        UserError: see `load` and `compact`; or the file cannot be written.
    """
    path, checkpoint, net = Path(path), read_checkpoint(path), load(path)
    dense = dense_size(net, checkpoint["sparsereg"]["data"]["image_shape"])
    suffix = f"_{round_to}" if round_to > 1 else ""
    folder = path.with_name(f"{path.stem}_compact{suffix}")
    return write_compact(compact(net, round_to), dense, checkpoint["sparsereg"], folder)


def write_compact(small: fx.GraphModule, dense: dict, record: dict, folder: Path) -> Path:
    """Write FOLDER/compact.pt and return its path.

    Args:
        small: a cut network.
        dense: `params` and `macs` of the network that it was cut from.
        record: of that network's checkpoint, what stands under `sparsereg`.

    Raises:
        UserError: the file cannot be written.
    """
    file = folder / "compact.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    state = {f"net.{name}": tensor for name, tensor in small.state_dict().items()}
    network = describe(small) | {"dense": dense}
    save({"state_dict": state, "sparsereg": record | {"network": network}}, file)
    return file
