"""From a checkpoint to the file of its cut network: weights and widths, all that is needed to use
it or to train it further."""

from pathlib import Path

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
    small = compact(net, round_to)
    dense = dense_size(net, checkpoint["sparsereg"]["data"]["image_shape"])
    network = describe(small) | {"dense": dense}
    state = {f"net.{name}": tensor for name, tensor in small.state_dict().items()}
    suffix = f"_{round_to}" if round_to > 1 else ""
    file = path.with_name(f"{path.stem}_compact{suffix}") / "compact.pt"
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {file.parent}: {error.strerror}") from error
    save({"state_dict": state, "sparsereg": checkpoint["sparsereg"] | {"network": network}}, file)
    return file
