"""Which images make a batch: shuffled by (seed, epoch), shared out to the processes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class BatchIndices(Sampler[Tensor]):
    """Yields one index tensor (batch,) per batch.

    Args:
        size: number of images.
        batch_size: indices per batch and rank.
        seed: shuffles; the order depends on (seed, epoch) alone. None: in order, and the
            incomplete last batch is kept.
        rank, world_size: this process takes every world_size-th index from rank on. Shuffled,
            all ranks get the same number of batches.
        device: of the index tensors; they are moved there once an epoch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.device = rank, world_size, device
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.seed is not None:
            return self.size // self.world_size // self.batch_size
        return -(-len(range(self.rank, self.size, self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = self._order()[self.rank :: self.world_size].to(self.device)
        for batch in range(len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(self.size)
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        return torch.randperm(self.size, generator=generator)
