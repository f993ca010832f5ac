"""A number of parameters, or of multiply-adds, that the cut network must not exceed."""

from collections.abc import Sequence

from torch import Tensor, nn

from sparsereg.errors import UserError
from sparsereg.sparsity.selection import choose_open
from sparsereg.sparsity.size import dense_size
from sparsereg.sparsity.target import TargetSparsity


class TargetSize(TargetSparsity):
    """`TargetSparsity` for a size in numbers: the cut network has at most so many, and hardly less.

    Args:
        net: the network that is trained, with `L0Gate` layers.
        image_shape: (C, H, W) of an image.
        at_most: parameters, or multiply-adds for an image.
        cost: "params" or "macs".
        settings: see `TargetSparsity`.

    Raises:
        UserError: the network is as small already; or see `TargetSparsity`.
    """

    def __init__(
        self, net: nn.Module, image_shape: Sequence[int], at_most: int, cost: str, **settings
    ):
        dense = dense_size(net, tuple(image_shape))[cost]
        if at_most >= dense:
            raise UserError(
                f"target_{cost}={at_most:,}: the dense network has {dense:,}, there is nothing to "
                "remove"
            )
        super().__init__(net, image_shape, 1 - at_most / dense, cost, **settings)
        self.at_most = at_most

    def choose(self, qz_loga: Tensor) -> Tensor:
        settings = self.expected_cost, self.cost, self.target, self.min_open_channels
        return choose_open(qz_loga, *settings, reach=True)

    def out_of_reach(self, layer: str, target: float, highest: float) -> str:
        smallest = self.expected_cost.smallest(self.cost, self.min_open_channels)
        least = self.expected_cost.count(smallest)[self.cost]
        return (
            f"target_{self.cost}={self.at_most:,} is out of reach: with the gates of this network "
            f"and min_open_channels={self.min_open_channels} the smallest has {least:,}"
        )
