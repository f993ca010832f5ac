"""The picture in TensorBoard: how many channels of each layer are open, epoch by epoch.

Drawn with Pillow: matplotlib would take as long as an epoch of a small run.
"""

import itertools

import numpy as np
from PIL import Image, ImageDraw

ROW, GAP, WIDTH = 14, 6, 480  # pixels: of a layer, between blocks, of all epochs
OPEN, CLOSED = np.array([0, 114, 178]), np.array([255, 255, 255])  # as in the pictures of report.py
INK = (40, 40, 40)


def blocks_picture(
    history: list[dict[str, int]], widths: dict[str, int], first_epoch: int = 1
) -> np.ndarray:
    """A row for each layer, a column for each epoch, darker where more channels are open.

    Args:
        history: of each epoch {layer: open channels}.
        widths: {layer: all its channels}.
        first_epoch: the number of the first column; a resumed run begins later than 1.

    Returns:
        (height, width, 3), uint8.
    """
    names, blocks = list(widths), [name.partition("/")[0] for name in widths]
    gaps = np.cumsum([0] + [a != b for a, b in itertools.pairwise(blocks)])
    tops = [2 * ROW + i * ROW + int(gap) * GAP for i, gap in enumerate(gaps)]
    left = 12 + 6 * max(map(len, names))
    image = Image.new("RGB", (left + WIDTH + 70, tops[-1] + 2 * ROW), "white")
    draw = ImageDraw.Draw(image)
    draw.text((left, 4), f"epoch {first_epoch} to {first_epoch + len(history) - 1}", INK)
    draw.text((left + WIDTH + 8, 4), "open now", INK)
    edges = np.linspace(left, left + WIDTH, len(history) + 1).round().astype(int)
    for name, top in zip(names, tops, strict=True):
        draw.text((6, top + 1), name, INK)
        for opened, x, end in zip(history, edges, edges[1:], strict=False):
            share = opened[name] / widths[name]
            color = tuple((CLOSED + share * (OPEN - CLOSED)).astype(int).tolist())
            draw.rectangle((x, top, max(x, end - 1), top + ROW - 2), color)
        draw.rectangle((left, top, left + WIDTH - 1, top + ROW - 2), outline=(200, 200, 200))
        draw.text((left + WIDTH + 8, top + 1), f"{history[-1][name]} of {widths[name]}", INK)
    return np.asarray(image)
