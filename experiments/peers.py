"""Cuts a dense GoogleNet to a size without gates, for comparison: by magnitude, or at random.

    python -m experiments.peers magnitude RUN/best.ckpt 0.64
    python -m experiments.peers random RUN/best.ckpt 0.64 --seed 1

Writes a file, `--out`, which train.py trains on as it does every cut network.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import fx, nn

from sparsereg.checkpoint import load, load_weights, read_checkpoint
from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.export.formats import write_compact
from sparsereg.networks import rebuild
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.selection import choose_open, polarise
from sparsereg.sparsity.size import count

STEPS = 500  # of pruning by magnitude on the way to nothing: a few channels each
TOLERANCE = 0.005  # by which a size may miss what was asked for
Shape = tuple[int, int, int]  # (C, H, W) of an image


def by_magnitude(net: nn.Module, cost: str, sparsity: float, image_shape: Shape) -> fx.GraphModule:
    """`net` without its weakest channels, of all layers, as Torch-Pruning ranks them.

    Groups of channels that belong together are ranked by the mean L2 norm of their weights, divided
    by the mean of their layer, and taken across layers (DepGraph, Fang et al. 2023, arXiv
    2301.12900); ranked anew after every few channels.
    """
    try:
        import torch_pruning as tp
    except ImportError:
        hint = "pip install -r requirements-benchmarks.txt"
        raise UserError(f"pruning by magnitude needs torch-pruning: {hint}") from None
    small = compact(net)
    dense = count(small, image_shape)[cost]
    pruner = tp.pruner.MagnitudePruner(
        small,
        torch.zeros(1, *image_shape),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[layer for layer in small.modules() if isinstance(layer, nn.Linear)],
    )
    while 1 - count(small, image_shape)[cost] / dense < sparsity - TOLERANCE / 2:
        pruner.step()
    return small


def at_random(
    checkpoint: dict, cost: str, sparsity: float, image_shape: Shape, seed: int
) -> fx.GraphModule:
    """The network of a checkpoint with a uniform random choice of the channels that gates choose
    among, as many as the size allows; of every block's output at least one is left, as by gates."""
    gated = checkpoint["sparsereg"]["network"] | {"without_using_gate": False}
    net = rebuild(gated)
    load_weights(net, checkpoint, new_gates=True)
    expected = ExpectedCost(net, image_shape)
    scores = torch.rand(expected.num_gates, generator=torch.Generator().manual_seed(seed))
    polarise(net, choose_open(scores, expected, cost, sparsity, min_open=1))
    return compact(net)


def cut_peer(method: str, path: Path, cost: str, sparsity: float, seed: int, file: Path) -> None:
    """Write to `file` the network of the checkpoint `path` cut by `method`.

    Raises:
        UserError: the checkpoint cannot be read, or the size is missed by more than `TOLERANCE`.
    """
    checkpoint = read_checkpoint(path)
    image_shape = tuple(checkpoint["sparsereg"]["data"]["image_shape"])
    net = load(path)
    if method == "random":
        small = at_random(checkpoint, cost, sparsity, image_shape, seed)
    else:
        small = by_magnitude(net, cost, sparsity, image_shape)
    dense = count(net, image_shape)
    reached = 1 - count(small, image_shape)[cost] / dense[cost]
    if abs(reached - sparsity) > TOLERANCE:
        raise UserError(f"{method}: {sparsity} of the {cost} was missed: {reached:.4f}")
    write_compact(small, dense, checkpoint["sparsereg"], file)
    print(f"{file}: by {method}, without {reached:.4f} of the {cost}", flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Cut a dense GoogleNet without gates.")
    parser.add_argument("method", choices=("magnitude", "random"))
    parser.add_argument("checkpoint", type=Path, help="of the dense network")
    parser.add_argument("sparsity", type=float, help="share of the cost that goes")
    parser.add_argument("--cost", choices=("params", "macs"), default="params")
    parser.add_argument("--seed", type=int, default=1, help="of the random choice")
    parser.add_argument("--out", type=Path, default=Path("outputs/peer/compact.pt"))
    o = parser.parse_args(arguments)
    try:
        cut_peer(o.method, o.checkpoint, o.cost, o.sparsity, o.seed, o.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
