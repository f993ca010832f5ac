"""Draws docs/lenet5.svg: what is left of a LeNet-5, its first filters, and from where in the image
it still reads features.

    python -m docs.figures.lenet5 CHECKPOINT    # with gates, or a compact file
"""

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sparsereg import load
from sparsereg.compact import compact
from sparsereg.model.layers import ChannelSelect

FOLDER = Path(__file__).parents[1]
STYLE = {"svg.hashsalt": "sparsereg", "font.family": "DejaVu Sans", "font.size": 9}
IMAGE, FIELD, STRIDE = 28, 16, 4  # pixels; a feature reads FIELD x FIELD of them
PLACES = (IMAGE - FIELD) // STRIDE + 1  # of features in each direction
COLUMNS = 5  # of filters


def features_left(net: nn.Module) -> Tensor:
    """How many filters the first linear layer still reads at each place, (PLACES, PLACES)."""
    selects = [m for m in net.modules() if isinstance(m, ChannelSelect)]
    order = selects[0].order if selects else torch.arange(net.fc1.in_features)
    return torch.bincount(order % PLACES**2, minlength=PLACES**2).view(PLACES, PLACES)


def pixels_read(features: Tensor) -> Tensor:
    """How many of the features read each pixel, (IMAGE, IMAGE)."""
    pixels = torch.zeros(IMAGE, IMAGE)
    for row, col in features.nonzero().tolist():
        top, left = STRIDE * row, STRIDE * col
        pixels[top : top + FIELD, left : left + FIELD] += features[row, col]
    return pixels


def draw(net: nn.Module) -> Figure:
    filters = net.conv1.weight.detach()[:, 0]  # (filters, 5, 5)
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.0, 1.35))
    left.suptitle(f"{len(filters)} of the 20 first filters")
    rows = -(-len(filters) // COLUMNS)
    axes = left.subplots(rows, COLUMNS, squeeze=False).flatten()
    limit = filters.abs().max().item()
    for ax, kernel in zip(axes, filters, strict=False):
        ax.imshow(kernel, cmap="RdBu", vmin=-limit, vmax=limit)
    for ax in axes:
        ax.set_axis_off()
    features = features_left(net)
    total = int(features.sum())
    right.suptitle(f"{total} of 800 features: where, and what they see")
    counts, pixels = right.subplots(1, 2)
    counts.imshow(features, cmap="Greys", vmin=0)
    for (row, col), n in ((place, int(features[place])) for place in places()):
        dark = n > features.max() / 2
        counts.text(col, row, n, ha="center", va="center", color="white" if dark else "black")
    shown = pixels.imshow(pixels_read(features), cmap="Greys", vmin=0)
    figure.colorbar(shown, ax=pixels, shrink=0.7, label="features that read a pixel")
    for ax in (counts, pixels):
        ax.set(xticks=[], yticks=[])
    return figure


def places() -> list[tuple[int, int]]:
    return [(row, col) for row in range(PLACES) for col in range(PLACES)]


def main(path: str, folder: Path = FOLDER) -> None:
    net = compact(load(path))
    with mpl.rc_context(STYLE):
        draw(net).savefig(folder / "lenet5.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])
