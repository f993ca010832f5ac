"""bfloat16 on a CPU: where the processor has it, and where what it computes is right.

Wrong bfloat16 convolutions are known bugs of some versions of torch on some processors.
"""

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from sparsereg.model import kernels

FLAGS = {"avx512_bf16", "amx_bf16"}
TOLERANCE = 0.02  # of the largest value; rounding alone differs by 0.004
SHAPES = ((64, 32, 1), (32, 48, 3), (16, 24, 5), (3, 64, 3))  # channels in, out, kernel size


def precision_of(precision: str, on_cpu: bool) -> str:
    """What `trainer.precision=auto` stands for here, bf16-mixed or 32-true; others as they are."""
    if precision == "auto":
        precision = "bf16-mixed" if on_cpu and has_bfloat16() and is_right() else "32-true"
        rank_zero_only(print)(f"trainer.precision=auto: {precision} on this machine", flush=True)
    if precision == "bf16-mixed" and on_cpu and (reason := kernels.why_not()):
        rank_zero_warn(f"training in bfloat16 without the faster kernels: {reason}")
    return precision


def has_bfloat16() -> bool:
    """Has this processor instructions for it? Without them torch computes it slowly."""
    return bool(FLAGS & kernels.instructions())


def is_right() -> bool:
    """Do convolutions in bfloat16 agree with those in float32, gradients too? Warn if not."""
    wrong = [found for found in map(difference, SHAPES) if not found < TOLERANCE]  # NaN too
    if wrong:
        rank_zero_warn(
            f"bfloat16 convolutions differ from float32 by {wrong[0]:.2g} of the largest value "
            f"with torch {torch.__version__} on this processor: training in float32"
        )
    return not wrong


def difference(shape: tuple[int, int, int]) -> float:
    """Largest difference of a convolution and its gradients, relative to the largest value."""
    pairs = zip(convolve(shape, torch.bfloat16), convolve(shape, torch.float32), strict=True)
    return max(((a.float() - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def convolve(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Output (8, C, 16, 16) and gradients of a convolution of random numbers, always the same."""
    c_in, c_out, size = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, c_in, 16, 16, generator=random).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(c_out, c_in, size, size, generator=random)
    x, weight = (t.to(dtype).requires_grad_() for t in (x.bfloat16(), weight.bfloat16()))
    y = F.conv2d(x, weight, padding=size // 2)
    gy = torch.randn(y.shape, generator=random).to(torch.bfloat16).to(dtype)
    return y.detach(), *torch.autograd.grad(y, (x, weight), gy)
