"""A cut network as files: compact.pt, for this project, and those that run without it, of
torch.export and ONNX."""

import importlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from sparsereg.checkpoint import load, read_checkpoint, save
from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.files import write_atomically
from sparsereg.runs.folder import compact_folder
from sparsereg.sparsity.size import dense_size
from sparsereg.surgery.plain_graph import describe

TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit


def cut_file(path: str | Path, round_to: int = 1) -> Path:
    """Write compact.pt, weights and widths, into the `compact_folder` of the checkpoint `path`, and
    return its path: all that is needed to use the cut network or to train it further.

    Raises:
        UserError: see `load` and `compact`; or the file cannot be written.
    """
    path, checkpoint, net = Path(path), read_checkpoint(path), load(path)
    dense = dense_size(net, checkpoint["sparsereg"]["data"]["image_shape"])
    file = compact_folder(path, round_to) / "compact.pt"
    write_compact(compact(net, round_to), dense, checkpoint["sparsereg"], file)
    return file


def write_compact(small: fx.GraphModule, dense: dict, record: dict, file: Path) -> None:
    """Write a cut network as a file that train.py, test.py and `sparsereg.load` take.

    Args:
        small: the network.
        dense: `params` and `macs` of the one that it was cut from.
        record: what the checkpoint of that one has under `sparsereg`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {file.parent}: {error.strerror}") from error
    state = {f"net.{name}": tensor for name, tensor in small.state_dict().items()}
    network = describe(small) | {"dense": dense}
    save({"state_dict": state, "sparsereg": record | {"network": network}}, file)


def export(net: nn.Module, image_shape: tuple[int, int, int], folder: Path) -> dict[str, float]:
    """Write FOLDER/compact.pt2 and, where onnx is installed, FOLDER/compact.onnx.

    Both take any batch size. Each file is read again, and its logits compared with those of `net`.

    Returns:
        For each file written, the largest difference relative to the largest logit.

    Raises:
        RuntimeError: a file computes something else than `net`.
    """
    batch = torch.export.Dim("batch")
    images = torch.randn(2, *image_shape)
    program = torch.export.export(net, (images,), dynamic_shapes=({0: batch},))
    content = io.BytesIO()
    with warnings.catch_warnings():  # about weights in channels_last; the file is read back below
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, content)
    write_atomically(folder / "compact.pt2", content.getbuffer())
    files = {"compact.pt2": torch.export.load(folder / "compact.pt2").module()}
    if has_onnx():
        files["compact.onnx"] = write_onnx(program, folder / "compact.onnx")
    return {name: difference(net, other, image_shape, name) for name, other in files.items()}


def has_onnx() -> bool:
    try:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            importlib.import_module(package)
    except ImportError:
        return False
    return True


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> Callable:
    """Write the file and return what onnxruntime makes of it, a function of images."""
    import onnxruntime

    onnx_program = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    write_atomically(path, onnx_program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def difference(
    net: nn.Module, other: Callable, image_shape: tuple[int, int, int], name: str
) -> float:
    largest = 0.0
    for batch in (1, 3, 8):
        images = torch.randn(batch, *image_shape)
        with torch.no_grad():
            logits: Tensor = net(images)
            error = (other(images) - logits).abs().max() / logits.abs().max()
        largest = max(largest, error.item())
    if not largest <= TOLERANCE:
        raise RuntimeError(f"{name} differs from the network by {largest:.1e} of the largest logit")
    return largest
