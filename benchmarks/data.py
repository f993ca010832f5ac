"""Images per second of the batched augmentation beside PIL transforms, one image at a time.

    python -m benchmarks.data [rounds]

Both start from the same uint8 images in memory and give normalised float batches on the CPU.
glibc hands large buffers back to the system after every step and faults them in again; with
MALLOC_MMAP_THRESHOLD_=268435456 MALLOC_TRIM_THRESHOLD_=536870912 in the environment it does not.
"""

import os
import sys
import time
from collections.abc import Callable

import numpy as np
import PIL
import torch
import torchvision
from torchvision import transforms as T

from sparsereg.data.augment import augment, normalize
from sparsereg.data.batch_indices import BatchIndices
from sparsereg.latency import machine

BATCH, IMAGES, SIZE = 128, 50_000, 32
SCALE, RATIO = (0.8, 1.0), (0.9, 1.1)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def batched(images: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return lambda index: normalize(augment(images[index], True, SCALE, RATIO), mean, std)


def per_image(images: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, C)
    transform = T.Compose(
        [
            T.RandomHorizontalFlip(),
            T.RandomResizedCrop(SIZE, SCALE, RATIO),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )
    return lambda index: torch.stack(
        [transform(PIL.Image.fromarray(pixels[i])) for i in index.tolist()]
    )


def rate(load: Callable, batches: list[torch.Tensor]) -> float:
    start = time.perf_counter()
    for index in batches:
        load(index)
    return len(batches) * BATCH / (time.perf_counter() - start)


def header() -> str:
    return (
        f"{machine()}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}, "
        f"MALLOC_TRIM_THRESHOLD_ {os.environ.get('MALLOC_TRIM_THRESHOLD_', 'default')}"
    )


def quartiles(values: list[float]) -> str:
    low, median, high = np.percentile(values, [25, 50, 75])
    return f"{median:>10,.1f}   ({low:,.1f} to {high:,.1f})"


def main(rounds: int = 15) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=torch.uint8)
    order = list(BatchIndices(IMAGES, BATCH, seed=0))
    ways = {"batched": (batched(images), 60), "PIL": (per_image(images), 6)}
    rates = {name: [] for name in ways}
    for load, _ in ways.values():
        load(order[0])  # warm up
    for _ in range(rounds):  # alternating, so that a busy machine slows both
        for name, (load, batches) in ways.items():
            rates[name].append(rate(load, order[:batches]))
    print(header())
    print(f"batch {BATCH}, {SIZE}x{SIZE}, {rounds} rounds, median (quartiles)")
    for name in ways:
        print(f"{name:<8} images/s {quartiles(rates[name])}")
    ratios = [a / b for a, b in zip(rates["batched"], rates["PIL"], strict=True)]
    print(f"{'ratio':<17} {quartiles(ratios)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
