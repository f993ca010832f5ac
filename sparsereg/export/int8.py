"""The cut network in eight-bit integers: compact.int8.onnx, quantized by onnxruntime.

Only convolutions and products, with the ReLU that follows, which is a bound of their range; each
output channel of a weight has a scale of its own. Ranges of activations are those of training
images. Weights have seven bits: processors without VNNI would saturate with eight (onnxruntime's
advice for `reduce_range`). Biases stay in float32 in the file: in 32-bit integers each would need a
scale beside it, which follows from the others. onnxruntime computes it when it opens the file.
"""

import logging
import sys
import tempfile
from pathlib import Path
from statistics import median

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_static
from rich.console import Console
from torch import Tensor

from sparsereg.budgets.paired import right
from sparsereg.data.pipeline import ImageData
from sparsereg.errors import printable
from sparsereg.export.formats import open_onnx, without_notes
from sparsereg.export.latency import compare_latency, speedup
from sparsereg.export.report import numbers_table
from sparsereg.files import write_atomically

PRODUCTS = ["Conv", "Gemm", "MatMul"]
BOUNDS = ["Relu", "Clip"]
IMAGES = 512  # of the training set, for ranges and errors
BATCH = 64
ROUNDS = {1: 31, 128: 9}  # images: rounds of measuring
LARGEST_DROP = 0.01  # of the accuracy, without a warning
NAMED = 3  # layers in the warning


class Calibration:
    """Batches as onnxruntime asks for them."""

    def __init__(self, images: Tensor):
        self.batches = iter(images.split(BATCH))

    def get_next(self) -> dict | None:
        images = next(self.batches, None)
        return None if images is None else {"images": images.numpy()}


def quantize(
    source: Path, images: Tensor, file: Path, ranges: Path, layer: str | None = None
) -> None:
    """Write an ONNX file with eight-bit weights and activations.

    Args:
        source: the file with float32.
        images: normalised training images (N, C, H, W).
        file: to write.
        ranges: a file that keeps the ranges of the activations, or has them already.
        layer: name of the only node to quantize; None: all convolutions and products.
    """
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it advises to fold BatchNorm first, which is done
    try:
        quantize_static(
            source,
            file,
            Calibration(images),
            op_types_to_quantize=PRODUCTS + BOUNDS,
            nodes_to_quantize=None if layer is None else [layer],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibration_cache_path=ranges,
            extra_options={"QuantizeBias": False},
        )
    finally:
        root.setLevel(level)


def write_int8(source: Path, data: ImageData, flip_tta: bool) -> dict:
    """Write compact.int8.onnx beside compact.onnx, and compare the two.

    Returns:
        Under `files`, for each: `val_acc`, `test_acc`, `bytes`, milliseconds and speed-up over the
        float32 file; under `largest_errors`, if the accuracy fell by more than a point, the layers
        that change the logits most when they alone are quantized.
    """
    images = training_images(data)
    file = source.with_name("compact.int8.onnx")
    with tempfile.TemporaryDirectory() as folder:
        ranges, draft = Path(folder, "ranges.json"), Path(folder, "int8.onnx")
        quantize(source, images, draft, ranges)
        write_atomically(file, shortened(onnx.load(draft)).SerializeToString())
        rows = compare([source, file], data, flip_tta)
        errors = {}
        if max(drops(rows).values()) > LARGEST_DROP:
            errors = errors_by_layer(source, images, ranges)
    return {"files": rows, "largest_errors": errors}


def shortened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with short names inside: else a fourth of the file would be names."""
    model = without_notes(model)
    kept = [value.name for value in (*model.graph.input, *model.graph.output)]
    short = {name: name for name in (*kept, "")}  # "": an input that is left out
    for node in model.graph.node:
        node.ClearField("name")
        for names in (node.input, node.output):
            names[:] = [short.setdefault(name, f"t{len(short)}") for name in names]
    for weight in model.graph.initializer:
        weight.name = short[weight.name]
    return model


def training_images(data: ImageData) -> Tensor:
    """Some training images as the network sees them in evaluation, always the same."""
    train = data.splits.train
    chosen = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))[:IMAGES]
    return data.on_after_batch_transfer((train.images[chosen], train.labels[chosen]))[0]


def compare(files: list[Path], data: ImageData, flip_tta: bool) -> dict[str, dict]:
    """Accuracy, bytes and latency of ONNX files, by name; the first is the peer of the others."""
    runs = {file.name: open_onnx(file) for file in files}
    rows = {file.name: {"bytes": file.stat().st_size} for file in files}
    for name, run in runs.items():
        for split in ("val", "test"):
            rows[name][f"{split}_acc"] = right(run, data, split, flip_tta).double().mean().item()
    for batch, rounds in ROUNDS.items():
        times = compare_latency(runs, torch.randn(batch, *data.image_shape), rounds)
        for name, row in rows.items():
            row[f"ms_batch_{batch}"] = median(times[name])
            row[f"speedup_batch_{batch}"] = speedup(times[name], times[files[0].name])
    return rows


def drops(rows: dict[str, dict]) -> dict[str, float]:
    """By how much the accuracy of the int8 file is lower, in shares of 1."""
    full, small = rows.values()
    return {split: full[f"{split}_acc"] - small[f"{split}_acc"] for split in ("val", "test")}


def errors_by_layer(source: Path, images: Tensor, ranges: Path) -> dict[str, float]:
    """For each layer, by how much the logits change when it alone is quantized, relative to their
    norm; the largest first."""
    model, images = onnx.load(source), images[:BATCH]
    logits = open_onnx(source)(images)
    errors = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "layer.onnx")
        for node in model.graph.node:
            if node.op_type in PRODUCTS:
                quantize(source, images, file, ranges, node.name)
                change = (open_onnx(file)(images) - logits).norm() / logits.norm()
                errors[node.input[1].removesuffix(".weight")] = change.item()
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def print_files(results: dict) -> None:
    """A column for each file; and a warning if the accuracy fell by more than a point."""
    rows = results["files"]
    table = numbers_table("", *rows)
    table.add_row("validation accuracy", *(f"{row['val_acc']:.2%}" for row in rows.values()))
    table.add_row("test accuracy", *(f"{row['test_acc']:.2%}" for row in rows.values()))
    table.add_row("bytes", *(f"{row['bytes']:,}" for row in rows.values()))
    for n in ROUNDS:
        times = [(row[f"ms_batch_{n}"], row[f"speedup_batch_{n}"]) for row in rows.values()]
        table.add_row(f"ms, batch {n}", *(f"{ms:.2f} ({gain:.2f} ×)" for ms, gain in times))
    Console().print(table)
    if said := warning(results):
        print(f"warning: {printable(said)}", file=sys.stderr)


def warning(results: dict) -> str | None:
    """What to say if the accuracy fell by more than a point."""
    lost = {split: drop for split, drop in drops(results["files"]).items() if drop > LARGEST_DROP}
    if not lost:
        return None
    names = {"val": "validation", "test": "test"}
    points = " and ".join(f"{100 * d:.1f} points of {names[s]} accuracy" for s, d in lost.items())
    worst = ", ".join(f"{n} ({e:.1%})" for n, e in [*results["largest_errors"].items()][:NAMED])
    return f"compact.int8.onnx loses {points}; largest errors of the logits by layer: {worst}"
