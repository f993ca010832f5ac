"""Draws the pictures of docs/method.md: `python docs/figures/pictures.py`.

A rerun writes equal files."""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

sys.path.insert(0, str(Path(__file__).parents[2]))
from sparsereg.model.basic_l0_blocks import GAMMA, ZETA, deterministic_gate, prob_nonzero
from sparsereg.model.googlenet import REDUCE, STEM_CHANNELS, WIDTHS

FOLDER = Path(__file__).parents[1]
TEMPERATURE = 2 / 3
THRESHOLD = np.log(-GAMMA / ZETA)  # the gate is open when ln α is above
LOG_ALPHAS = (-3, -1, 0, 1, 3)
BLUE, ORANGE = "#0072B2", "#D55E00"  # of the palette of Okabe and Ito, for colour-blind readers
GREY, INK, SHADE = "#767676", "#222222", "#EFEFEF"
CONV = {"fc": "#E8F1F8", "ec": BLUE}
GATE = {"fc": "#FCE9DC", "ec": ORANGE}
CLOSED = {"fc": "white", "ec": GREY, "ls": "--"}
PLAIN = {"fc": "white", "ec": INK}
COLUMNS = (1.2, 3.55)  # left edges of the two boxes of a branch
NOTE = "Dashed: every gate of the 5×5 branch is closed. The branch goes, its reduction with it."
LEGEND = {"handlelength": 1, "columnspacing": 0.9}
STYLE = {"svg.hashsalt": "sparsereg", "font.family": "DejaVu Sans", "font.size": 9}


def label(number):
    return f"{number:.4g}".replace("-", "−")


def cdf(z, log_alpha):
    """P(stretched sample ≤ z) = σ(β logit(x) - ln α) with x = (z-γ)/(ζ-γ)."""
    x = (z - GAMMA) / (ZETA - GAMMA)
    return 1 / (1 + np.exp(log_alpha - TEMPERATURE * np.log(x / (1 - x))))


def density(z, log_alpha):
    """Density of the hard-concrete gate on (0, 1), the derivative of `cdf`."""
    x, q = (z - GAMMA) / (ZETA - GAMMA), cdf(z, log_alpha)
    return q * (1 - q) * TEMPERATURE / (x * (1 - x)) / (ZETA - GAMMA)


def point_masses(log_alpha):
    """P(z = 0), P(z = 1)."""
    return cdf(0, log_alpha), 1 - cdf(1, log_alpha)


def draw_distribution(ax):
    """Density on (0, 1); the probabilities of exactly 0 and 1 as stems beside it."""
    z = np.linspace(0, 1, 201)
    for left in (-0.24, 1):
        ax.axvspan(left, left + 0.24, color=SHADE, lw=0)
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(LOG_ALPHAS)))
    for i, (log_alpha, color) in enumerate(zip(LOG_ALPHAS, colors, strict=True)):
        ax.plot(z, density(z, log_alpha), color=color, lw=1.8, label=label(log_alpha))
        for at, mass in zip((-0.2, 1.04), point_masses(log_alpha), strict=True):
            ax.vlines(at + 0.04 * i, 0, mass, color=color, lw=1.8)
            ax.plot(at + 0.04 * i, mass, "o", color=color, ms=4.5)
    ax.text(-0.12, 1.84, "P(z = 0)", ha="center")
    ax.text(1.12, 1.84, "P(z = 1)", ha="center")
    ax.set(xlim=(-0.24, 1.24), ylim=(0, 1.95), xlabel="gate z", title="In training: z is random")
    ax.set(ylabel="density on (0, 1); probability at 0, 1", xticks=[0, 0.25, 0.5, 0.75, 1])
    ax.legend(title="ln α", loc="upper center", ncols=5, frameon=False, **LEGEND)


def draw_gate(ax):
    """Gate at test time and P(z ≠ 0) over ln α, and where the gate opens."""
    log_alpha = torch.linspace(-6, 6, 481)
    ax.axvspan(-6, THRESHOLD, color=SHADE, lw=0)
    ax.axvline(THRESHOLD, color=GREY, ls="--", lw=1)
    ax.plot(log_alpha, prob_nonzero(log_alpha), color=BLUE, lw=2)
    ax.plot(log_alpha, deterministic_gate(log_alpha), color=ORANGE, lw=2)
    marked = torch.tensor([THRESHOLD, 0, np.log(0.95 / 0.05)])
    ax.plot(marked, prob_nonzero(marked), "o", color=BLUE, ms=5)
    ax.text(-2.6, 0.44, "P(z ≠ 0)", color=BLUE, ha="right", weight="bold")
    ax.text(-2.6, 0.35, "0.310 here", color=BLUE, ha="right")
    ax.text(-0.25, 0.85, "d = 0.5", color=BLUE, ha="right")
    ax.text(3.0, 0.9, "d = 0.05", color=BLUE)
    ax.text(0.75, 0.55, "ẑ, gate at test time", color=ORANGE, weight="bold")
    ax.text(THRESHOLD - 0.2, 1.08, "closed", ha="right")
    ax.text(THRESHOLD + 0.2, 1.08, "open")
    ax.set(xlim=(-6, 6), ylim=(0, 1.15), xlabel="ln α", title="At test time: ẑ is fixed")
    ticks = [-6, -4, THRESHOLD, 0, 2, 4, 6]
    ax.set_xticks(ticks, [label(tick) for tick in ticks])


def hard_concrete():
    fig = Figure(figsize=(8.4, 3.5), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=(1.15, 1))
    draw_distribution(left)
    draw_gate(right)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def draw_box(ax, x, y, width, text, style, height=0.62):
    """A box whose left edge is at x, centred on y; text is rotated in a box higher than wide."""
    corner, form = (x, y - height / 2), "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch(corner, width, height, form, lw=1.2, **style))
    color = GREY if style is CLOSED else INK
    at = {"ha": "center", "va": "center", "rotation": 90 if height > width else 0}
    ax.text(x + width / 2, y, text, color=color, linespacing=1.35, **at)


def draw_arrow(ax, start, end, y, style):
    color, line = (GREY, "--") if style is CLOSED else (INK, "-")
    arrow = {"arrowstyle": "-|>", "lw": 1.1, "color": color, "ls": line, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (end, y), (start, y), arrowprops=arrow)


def draw_branch(ax, y, boxes, gates, closed=False):
    """Arrows and boxes from the input to the concatenation; the last box is the gate layer."""
    left = 0.75  # right edge of the input
    for column, text in boxes.items():
        style = CLOSED if closed else CONV
        draw_arrow(ax, left, COLUMNS[column], y, style)
        draw_box(ax, COLUMNS[column], y, 1.85, text, style)
        left = COLUMNS[column] + 1.85
    style = CLOSED if closed else GATE
    draw_arrow(ax, left, 5.85, y, style)
    draw_box(ax, 5.85, y, 1.25, f"L0Gate\n{gates} {'closed' if closed else 'gates'}", style)
    draw_arrow(ax, 7.1, 7.55, y, style)


def inception_block():
    """Block 1; its 5x5 branch is drawn closed."""
    (r3, r5), (w1, w3, w5, wm) = REDUCE[0], WIDTHS[0]
    total = w1 + w3 + w5 + wm
    fig = Figure(figsize=(8.4, 3.6))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 10), ylim=(-0.35, 3.85))
    ax.axis("off")

    def conv(kernel_size, width):
        return f"conv {kernel_size}×{kernel_size} → {width}\nBN, activation"

    draw_branch(ax, 3.4, {1: conv(1, w1)}, w1)
    draw_branch(ax, 2.5, {0: conv(1, r3), 1: conv(3, w3)}, w3)
    draw_branch(ax, 1.6, {0: conv(1, r5), 1: conv(5, w5)}, w5, closed=True)
    draw_branch(ax, 0.7, {0: "max-pool 3×3", 1: conv(1, wm)}, wm)
    draw_box(ax, 0.2, 2.05, 0.55, f"input: {STEM_CHANNELS} channels", PLAIN, height=3.32)
    text = f"concatenation: {total - w5} of {total} channels"
    draw_box(ax, 7.55, 2.05, 0.55, text, PLAIN, height=3.32)
    draw_arrow(ax, 8.1, 8.55, 2.05, PLAIN)
    draw_box(ax, 8.55, 2.05, 1.25, f"block 2\nreads {total - w5}\ninputs", PLAIN, height=0.95)
    ax.text(0.2, -0.1, NOTE, color=GREY, va="center")
    return fig


def main(folder: Path = FOLDER) -> None:
    """Writes the pictures as SVG, text as paths: they look the same everywhere."""
    for draw in (hard_concrete, inception_block):
        with mpl.rc_context(STYLE):
            draw().savefig(folder / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
