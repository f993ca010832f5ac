"""Does a network with gates, and a cut one, compute what it should? A last look before it is used.

Nothing in the analysis should ever make this fail; it is for what nobody has thought of.
"""

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn

from sparsereg.errors import UserError
from sparsereg.graph.nodes import first_line, stopped_at
from sparsereg.graph.unreached import Collapsed
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.model.gated import GatedNetwork
from sparsereg.recording.layers import plain_copy
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.surgery.compaction import cut_closed, noise, relative_difference, tolerance
from sparsereg.surgery.plain_graph import check_savable

OPEN, PARTLY, CLOSED = 10.0, 0.5, -10.0  # ln α of gates that are 1, 0.65 and 0
FILLED = 0.1  # standard deviation of what stands for zeros


def verify(net: nn.Module, gated: GatedNetwork, example: Tensor) -> dict[str, float]:
    """Raise UserError unless the gated network with open gates computes what `net` does, the cut
    one what the gated one does with every other gate closed, for `example` and noise like it; and
    unless that can be saved.

    Returns the highest sparsity that the gates can reach, of parameters and of multiply-adds."""
    images = noise(tuple(gated.example_images.shape[1:])).to(gated.example_images)
    images = torch.cat([images, example.detach()[:2].to(images)])
    trial, images, expected = in_double(net, gated, images)
    dtype = images.dtype
    with torch.no_grad():
        set_gates(trial, OPEN, OPEN)
        check_logits(net, expected)
        compare(expected, trial(images), f"{type(net).__name__} with open gates", dtype)
        set_gates(trial, PARTLY, CLOSED)
        plain = plain_copy(trial)  # once, which takes long for weights that are computed
        check_savable(plain)
        with suppress(Collapsed):  # by gates that are alone in their layer
            compare(trial(images), cut_closed(plain)(images), f"{type(net).__name__}, cut,", dtype)
    cost = ExpectedCost(plain, tuple(gated.example_images.shape[1:]))
    return {name: cost.highest_sparsity(name, 1) for name in ("params", "macs")}


def in_double(
    net: nn.Module, gated: GatedNetwork, images: Tensor
) -> tuple[GatedNetwork, Tensor, Tensor]:
    """A copy of the gated network, the images, and what `net`, which may change those that it is
    given, computes of them, in eval mode and in double precision, if the code allows that."""
    net, gated = (copy.deepcopy(n).cpu() for n in (net, gated))
    fill_zeros(net, gated)
    for each in (net, gated):
        each.eval()
    images = images.double().cpu()
    try:
        with torch.no_grad():
            return gated.double(), images, net.double()(images.clone())
    except (RuntimeError, TypeError):  # it makes tensors of single precision itself
        images = images.float()
    try:
        with torch.no_grad():
            return gated.float(), images, net.float()(images.clone())
    except (RuntimeError, TypeError) as error:
        why = f"computes in several precisions{stopped_at(error, net)}: {first_line(error)}"
        raise UserError(f"{type(net).__name__} {why}") from error


@torch.no_grad()
def fill_zeros(*nets: nn.Module) -> None:
    """Small random numbers, the same in all, where parameters start at 0: behind a last layer of
    zeros, as that of vision transformers, nothing that differs would show."""
    generator = torch.Generator().manual_seed(0)
    own = [dict(net.named_parameters()) for net in nets]
    for name in sorted(set.intersection(*map(set, own))):
        parameters = [parameters[name] for parameters in own]
        if not any(parameter.any() for parameter in parameters):
            numbers = torch.randn(parameters[0].shape, generator=generator)
            for parameter in parameters:
                parameter.copy_(FILLED * numbers)


def set_gates(net: nn.Module, even: float, odd: float) -> None:
    for gate in gate_layers(net).values():
        gate.qz_loga[::2], gate.qz_loga[1::2] = even, odd


def check_logits(net: nn.Module, logits: object) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{type(net).__name__} must give logits (N, classes), not {shape}")


def compare(expected: Tensor, found: Tensor, what: str, dtype: torch.dtype) -> None:
    error = relative_difference(expected, found)
    if not error <= tolerance(dtype):  # nor NaN
        raise UserError(
            f"{what} differs by {error:.1e} of the largest logit: something in it is not what it "
            "seems. Exclude layers (exclude=…) until it does not, and please report the network"
        )
