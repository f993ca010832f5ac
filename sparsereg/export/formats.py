"""A cut network as files: compact.pt, for this project, and those that run without it, of
torch.export and ONNX."""

import importlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsereg.checkpoint import load, read_checkpoint, write_checkpoint
from sparsereg.compact import compact, fold
from sparsereg.errors import UserError
from sparsereg.export.deploy import Normalised, deployment
from sparsereg.files import write_atomically
from sparsereg.graph.nodes import first_line
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.runs.folder import compact_folder
from sparsereg.sparsity.size import dense_size
from sparsereg.surgery.plain_graph import describe

TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit


def cut_file(path: str | Path, round_to: int = 1, net: nn.Module | None = None) -> Path:
    """Write compact.pt, weights and widths, into the `compact_folder` of the checkpoint `path`, and
    return its path: all that is needed to use the cut network or to train it further.

    Args:
        path: of the checkpoint.
        round_to: see `compact`.
        net: the network of the checkpoint, where it has been loaded.

    Raises:
        UserError: see `load` and `compact`; or the file cannot be written.
    """
    path, checkpoint = Path(path), read_checkpoint(path)
    net = load(path) if net is None else net
    image_shape = checkpoint["sparsereg"]["data"]["image_shape"]
    dense = dense_size(net, image_shape)
    file = compact_folder(path, round_to) / "compact.pt"
    write_compact(compact(net, round_to, image_shape), dense, checkpoint["sparsereg"], file)
    return file


def save(
    net: nn.Module,
    path: str | Path,
    image_shape: Sequence[int],
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write a network as one file that `load` and `predict` read, closed channels cut out.

        sparsereg.save(net, "net.pt", **data.record())  # of a data set in sparsereg.data

    Args:
        net: with gates, or cut by `compact`: then the file cannot say what it was cut from; not
            changed.
        path: of the file.
        image_shape: (C, H, W) of the images.
        classes: their names, in the order of the logits.
        mean, std: of each channel of the training images, scaled to [0, 1].

    Raises:
        UserError: a layer that cannot be saved, see `compact`; or the file cannot be written.
    """
    if len(image_shape) != 3:
        raise UserError(f"image_shape={tuple(image_shape)} must be (C, H, W)")
    data = {"classes": [*map(str, classes)], "image_shape": [*map(int, image_shape)]}
    data |= {"mean": [*map(float, mean)], "std": [*map(float, std)]}
    dense = dense_size(net, tuple(image_shape))
    record = {"config": {}, "overrides": [], "data": data}
    is_cut = isinstance(net, fx.GraphModule) and not gate_layers(net)
    small = net if is_cut else compact(net, image_shape=image_shape)
    write_compact(small, dense, record, Path(path))


def write_compact(small: fx.GraphModule, dense: dict, record: dict, file: Path) -> None:
    """Write a cut network as a file that train.py, test.py and `sparsereg.load` take.

    Args:
        small: the network.
        dense: `params` and `macs` of the one that it was cut from.
        record: what the checkpoint of that one has under `sparsereg`.

    Raises:
        UserError: the file cannot be written.
    """
    make_folder(file.parent)
    state = {f"net.{name}": tensor for name, tensor in small.state_dict().items()}
    network = describe(small) | {"dense": dense, "image_shape": record["data"]["image_shape"]}
    write_checkpoint({"state_dict": state, "sparsereg": record | {"network": network}}, file)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error


def export(
    net: nn.Module,
    image_shape: Sequence[int],
    folder: str | Path,
    classes: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalise: str = "outside",
) -> dict[str, float]:
    """Write FOLDER/compact.pt2, deploy.json and, where onnx is installed, compact.onnx: the network
    in eval mode, cut and folded. They run without this project (docs/compact.md). What torch's
    exporter has no ONNX for is a warning.

        sparsereg.export(net, folder="exported", **data.record())  # of a data set in sparsereg.data

    Both take any number of images, of an axis named `batch`. Each file is read again, and its
    logits compared with those of `net`. What deploy.json says is in the files too, as metadata.

    Args:
        net: with gates, or cut; not changed.
        image_shape: (C, H, W) of the images.
        classes: their names, in the order of the logits.
        mean, std: of each channel of the training images, scaled to [0, 1].
        normalise: "outside": the files take float32 images that are scaled and normalised;
            "inside": they take uint8 images in 0..255.

    Returns:
        For each network written, the largest difference relative to the largest logit.

    Raises:
        UserError: see `compact` and `deployment`; or a file cannot be written.
        RuntimeError: a file computes something else than `net`.
    """
    folder = Path(folder)
    about = deployment(net, image_shape, classes, mean, std, normalise)
    make_folder(folder)
    small = fold(compact(net, image_shape=image_shape) if gate_layers(net) else net)
    if normalise == "inside":
        small = Normalised(small, mean, std).eval()
    examples = {n: example(n, image_shape, normalise) for n in (1, 2, 3, 8)}
    program = torch.export.export(
        small, (examples[2],), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    files = {"compact.pt2": write_pt2(program, folder / "compact.pt2", about)}
    if has_onnx():
        try:
            files["compact.onnx"] = write_onnx(program, folder / "compact.onnx", about)
        except torch.onnx.OnnxExporterError as error:
            (folder / "compact.onnx").unlink(missing_ok=True)  # that of an earlier cut
            warnings.warn(f"compact.onnx is not written: {innermost(error)}", stacklevel=2)
    found = {name: difference(small, other, examples, name) for name, other in files.items()}
    write_atomically(folder / "deploy.json", json.dumps(about, indent=1, ensure_ascii=False))
    return found


def example(number: int, image_shape: Sequence[int], normalise: str) -> Tensor:
    shape = (number, *image_shape)
    if normalise == "inside":
        return torch.randint(256, shape, dtype=torch.uint8)
    return torch.randn(shape)


def has_onnx() -> bool:
    try:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            importlib.import_module(package)
    except ImportError:
        return False
    return True


def write_pt2(program: torch.export.ExportedProgram, path: Path, about: dict) -> Callable:
    """Write the file and return what torch makes of it, a function of images."""
    content, more = io.BytesIO(), {"deploy.json": json.dumps(about)}
    with warnings.catch_warnings():  # about weights in channels_last; the file is compared
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, content, extra_files=more)
    write_atomically(path, content.getbuffer())
    return torch.export.load(path).module()


def write_onnx(program: torch.export.ExportedProgram, path: Path, about: dict) -> Callable:
    """Write the file and return what onnxruntime makes of it, a function of images."""
    model = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        dynamo=True,
        verbose=False,
    ).model_proto
    for key, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)
    write_atomically(path, without_notes(model).SerializeToString())
    return open_onnx(path)


def innermost(error: BaseException) -> str:
    """The first line of what an error came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def open_onnx(path: Path) -> Callable:
    """The network of an ONNX file, a function of images, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def without_notes(model: Any) -> Any:
    """An ONNX model without the exporter's notes on where each node comes from: a third of a small
    file."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    model.graph.ClearField("value_info")
    return model


def difference(net: nn.Module, other: Callable, examples: dict[int, Tensor], name: str) -> float:
    largest = 0.0
    for images in examples.values():
        with torch.no_grad():
            logits: Tensor = net(images)
            error = (other(images) - logits).abs().max() / logits.abs().max()
        largest = max(largest, error.item())
    if not largest <= TOLERANCE:
        raise RuntimeError(f"{name} differs from the network by {largest:.1e} of the largest logit")
    return largest
