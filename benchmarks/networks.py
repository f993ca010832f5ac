"""Gates in other people's networks: how much they can remove, and whether the cut is exact. Prints
the table of docs/networks.md, with what Torch-Pruning does to the same networks beside it.

    python -m benchmarks.networks [LIBRARY|LIBRARY:NAME …]

Without arguments all but those of transformers and pytorchcv, which are to be installed for them.
Every network gets random weights, also where its own start at 0 or 1, random BatchNorm weights and
statistics of the images, and several random gate patterns, in float64.
"""

import signal
import sys
import time

import torch
from torch import Tensor, nn

from benchmarks import hugging_face
from benchmarks.cifar_literature import LITERATURE
from benchmarks.network_names import EXTRA, NAMES, image_size
from sparsereg.compact import Collapsed, compact, fold
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers
from sparsereg.model.gated import GatedNetwork
from sparsereg.networks import plain_network
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.size import count
from sparsereg.surgery.insert import place_gates
from sparsereg.surgery.plain_graph import check_savable

SECONDS = 300  # of CPU time that Torch-Pruning may take
PATTERNS = 3
REASONS = {  # what the analysis says: what the table says
    "added to another tensor": "read by an addition",
    "makes a constant of its zero": "behind them a BatchNorm, depthwise convolution or sigmoid",
    "grouped convolution": "grouped convolutions",
}


def images(size: int) -> Tensor:
    """Four images of different brightness, so that what is pooled differs too, (4, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    brightness = torch.tensor([0.5, 1, 2, 4], dtype=torch.float64).view(4, 1, 1, 1)
    noise = torch.rand(4, 3, size, size, dtype=torch.float64, generator=generator)
    return brightness * (noise - 0.3)


def randomise(net: nn.Module, x: Tensor) -> None:
    """BatchNorm weights that are nobody's default, and statistics under which the images survive
    all layers and closed gates; without BatchNorm, weights under which they do."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        scale_weights(net, x)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of all batches since reset
            module.reset_running_stats()
            if module.affine:
                weight = module.weight.data.uniform_(0.5, 1.5)
                weight.mul_(torch.randn(weight.shape).sign())
                module.bias.data.uniform_(-0.5, 0.5)
    modes = {module: module.training for module in net.modules()}
    for module in net.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    with torch.no_grad():
        net(x)
    for module, training in modes.items():
        module.training = training


def scale_weights(net: nn.Module, x: Tensor) -> None:
    """So that what each layer makes differs from image to image, with a standard deviation of 1."""

    def hook(layer: nn.Module, _: tuple, y: Tensor) -> Tensor:
        deviation = (y - y.mean(0)).std()
        factor = 1 / deviation if deviation > 1e-6 * y.abs().max() else 1.0
        for parameter in layer.parameters():
            parameter.data.mul_(factor)
        return y * factor

    layers = [m for m in net.modules() if type(m) in (nn.Conv2d, nn.Linear)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()


def set_gates(net: nn.Module, share: float) -> Tensor:
    """Open about this share of the gates, at least one of each layer, most of them partly; which,
    (gates,)."""
    for gate in gate_layers(net).values():
        is_open = torch.rand(len(gate.qz_loga)) < share
        is_open[torch.randint(len(is_open), ())] = True
        partly = torch.empty(len(is_open)).uniform_(-1, 3)  # 0.2 to 1
        gate.qz_loga.data.copy_(torch.where(is_open, partly, -10.0))
    gates = [gate.qz_loga.detach() for gate in gate_layers(net).values()]
    return deterministic_gate(torch.cat(gates)) > 0


@torch.no_grad()
def largest_difference(gated: nn.Module, x: Tensor) -> float:
    """Of the cut and of the folded network from the masked one, relative to the largest logit; and
    once more without what does not depend on the image, which is the larger part of the logits."""
    randomise(gated, x)  # so that the images survive the closed gates too
    masked, small = gated(x), compact(gated)
    errors = []
    for logits in (small(x), fold(small)(x)):
        for a, b in ((masked, logits), (masked - masked.mean(0), logits - logits.mean(0))):
            errors.append(((a - b).abs().max() / a.abs().max()).item())
    return max(errors)


def check(gated: GatedNetwork, size: int, patterns: int = PATTERNS) -> dict:
    """Differences and counts of a network over some gate patterns."""
    x, image_shape = images(size), (3, size, size)
    cost = ExpectedCost(gated, image_shape)
    gated = gated.double().eval()
    errors, counted = [0.0], []
    for seed in range(patterns):
        torch.manual_seed(seed)
        is_open = set_gates(gated, (0.5, 0.2, 0.8)[seed % 3])
        try:
            errors.append(largest_difference(gated, x))
        except Collapsed:
            continue
        found = cost.count(is_open)
        size_when_cut = count(compact(gated), image_shape)
        counted.append(size_when_cut == {name: found[name] for name in size_when_cut})
    highest = {what: cost.highest_sparsity(what, 1) for what in ("params", "macs")}
    return {"error": max(errors), "counts": all(counted), "dense": cost.dense, **highest}


def make(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "literature":
        net = LITERATURE[name](num_classes=10)
    elif library == "transformers":
        net = hugging_face.make(name, num_classes=10)
    elif library == "pytorchcv":
        from pytorchcv.model_provider import get_model  # of all these networks; takes seconds

        net = get_model(name, num_classes=10)
    else:
        net = plain_network(library, name, num_classes=10)
    for parameter in net.parameters():  # layer scales, positions, last layers that start at 0
        if parameter.dim() == 1 or parameter.numel() < 5000 or not parameter.any():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return net


def ours(library: str, name: str, size: int) -> list[str]:
    """Gates, parameters, removable shares, difference, counts and seconds; or why not."""
    start = time.process_time()
    try:
        gated, _ = place_gates(
            make(library, name),
            coupled=True,
            behind_barriers=True,
            example=torch.zeros(1, 3, size, size),
        )
        check_savable(gated)
        seconds = time.process_time() - start
        found = check(gated, size)
    except UserError as error:
        return ["no: " + str(error).replace("|", "\\|"), *[""] * 6]
    return [
        *(f"{found['dense']['channels']:,}", f"{found['dense']['params']:,}"),
        *(f"{found['params']:.1%}", f"{found['macs']:.1%}", f"{found['error']:.0e}"),
        *("yes" if found["counts"] else "**no**", f"{seconds:.1f}"),
    ]


def torch_pruning(library: str, name: str, size: int) -> str:
    """The parameters that are gone when it prunes half of all channels; or its error."""
    import torch_pruning as tp

    net, images = make(library, name).eval(), torch.randn(1, 3, size, size)
    before = sum(p.numel() for p in net.parameters())
    last = [
        m for m in net.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 10
    ]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        importance = tp.importance.MagnitudeImportance(p=2)
        settings = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": last}
        tp.pruner.MetaPruner(net, images, **settings).step()
        net(images)
    except (Exception, TimeoutError) as error:  # whatever its code raises
        return f"no: {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return f"{1 - sum(p.numel() for p in net.parameters()) / before:.1%}"


def too_long(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, too_long)
    for key in sys.argv[1:] or [library for library in NAMES if library not in EXTRA]:
        library, _, name = key.partition(":")
        for network in [name] if name else NAMES[library]:
            row(library, network)


def row(library: str, name: str) -> None:
    size = image_size(library, name)
    cells = [library, f"`{name}`", str(size), *ours(library, name, size)]
    print(f"| {' | '.join([*cells, torch_pruning(library, name, size)])} |", flush=True)


if __name__ == "__main__":
    main()
