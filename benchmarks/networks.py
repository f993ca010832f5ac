"""Gates in other people's networks: where they go, how much they can remove, and whether the cut is
exact. Prints the table of docs/networks.md.

    python -m benchmarks.networks [NAME …]

Every network gets BatchNorm statistics of the images, random BatchNorm weights, and several random
gate patterns, in float64.
"""

import sys
from collections import Counter

import torch
from torch import Tensor, nn

from sparsereg.compact import compact, fold
from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers
from sparsereg.model.gated import GatedNetwork
from sparsereg.networks import plain_network
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.sparsity.size import count
from sparsereg.surgery.insert import Place, place_gates

OURS = ("resnet18", "wrn_28_10", "vgg16_bn", "mobilenet_v3_small", "lenet5")
TORCHVISION = (
    *("resnet18", "resnet50", "wide_resnet50_2", "vgg11_bn", "densenet121", "mobilenet_v2"),
    *("mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1", "googlenet", "regnet_y_400mf"),
    "shufflenet_v2_x0_5",
)
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
    all layers; the gates are open."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of all batches since reset
            module.reset_running_stats()
            module.weight.data.uniform_(0.5, 1.5).mul_(torch.randn(module.weight.shape).sign())
            module.bias.data.uniform_(-0.5, 0.5)
    modes = {module: module.training for module in net.modules()}
    for module in net.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    with torch.no_grad():
        net(x)
    for module, training in modes.items():
        module.training = training


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
    for gate in gate_layers(gated).values():
        gate.qz_loga.data.fill_(10.0)
    randomise(gated, x)
    errors, counted = [], []
    for seed in range(patterns):
        torch.manual_seed(seed)
        is_open = set_gates(gated, (0.5, 0.2, 0.8)[seed % 3])
        errors.append(largest_difference(gated, x))
        found = cost.count(is_open)
        size_when_cut = count(compact(gated), image_shape)
        counted.append(size_when_cut == {name: found[name] for name in size_when_cut})
    highest = {what: cost.highest_sparsity(what, 1) for what in ("params", "macs")}
    return {"error": max(errors), "counts": all(counted), "dense": cost.dense, **highest}


def why_not(places: list[Place]) -> str:
    """How many layers have no gate, and for which reasons; the classifier is not one of them."""
    found = [place.why_not for place in places if place.why_not]
    found = [why for why in found if "output of the network" not in why and "goes with" not in why]
    reasons = Counter(shorten(why) for why in found)
    return "; ".join(f"{n} {reason}" for reason, n in reasons.most_common())


def shorten(why: str) -> str:
    return next((reason for words, reason in REASONS.items() if words in why), why)


def row(library: str, name: str, size: int) -> str:
    torch.manual_seed(0)
    gated, places = place_gates(plain_network(library, name, num_classes=10))
    found = check(gated, size)
    layers = f"{sum(place.why_not is None for place in places)} of {len(places) - 1}"
    cells = [
        *(f"`{name}`", layers, f"{found['dense']['channels']:,}", f"{found['dense']['params']:,}"),
        *(f"{found['params']:.1%}", f"{found['macs']:.1%}", f"{found['error']:.0e}"),
        "yes" if found["counts"] else "**no**",
        why_not(places),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    for library, names, size in (("sparsereg", OURS, 32), ("torchvision", TORCHVISION, 64)):
        print(f"\n{library}, {size}x{size}", flush=True)
        for name in names:
            if not wanted or name in wanted:
                print(row(library, name, size), flush=True)


if __name__ == "__main__":
    main()
