"""Images per second of the batched augmentation beside PIL transforms, one image at a time.

    python -m benchmarks data

Both start from the same uint8 images in memory and give normalised float batches on the CPU.
"""

import functools
from collections.abc import Callable

import PIL
import torch
from torchvision import transforms as T

from benchmarks.measure import BATCH, alternate, rows_of
from sparsereg.data.augment import augment, normalize
from sparsereg.data.batch_indices import BatchIndices

SIZE = 32
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


def run(rounds: int = 9, images: int = 50_000, calls: int = 10) -> list[dict]:
    """Both on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (images, 3, SIZE, SIZE), dtype=torch.uint8)
    index = next(iter(BatchIndices(images, BATCH, seed=0)))
    ways = {"batched": batched(pixels), "PIL": per_image(pixels)}
    loads = {name: functools.partial(load, index) for name, load in ways.items()}
    times = alternate(loads, rounds, calls)
    torch.set_num_threads(threads)
    title = f"Data pipeline, one core, batch {BATCH}, {SIZE}x{SIZE}, {rounds} rounds"
    rows = rows_of(times, BATCH, {"× time of batched": "batched"})
    return [{"title": title, "rows": rows}]
