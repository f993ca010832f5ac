"""Gates in well-known networks: the cut is exact, and the analysis knows its size beforehand.

Thin forms, and one gate pattern each; `python -m benchmarks.networks` has all of them in full.
"""

import pytest
import torch
from networks import parameters
from torch import nn
from torchvision.models import DenseNet, MobileNetV2, ResNet, ShuffleNetV2, googlenet, squeezenet1_1
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from benchmarks.networks import check, images, largest_difference, randomise
from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.model.basic_l0_blocks import gate_layers
from sparsereg.model.small_images import NETWORKS, WideResNet
from sparsereg.networks import rebuild
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.surgery.insert import place_gates

MBCONV = [MBConvConfig(1, 3, 1, 16, 8, 1), MBConvConfig(6, 3, 2, 8, 16, 2)]
MOBILE = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]


def regnet() -> nn.Module:
    blocks = BlockParams.from_init_params(4, 16, 8.0, 2.0, 8, se_ratio=0.25)
    return RegNet(blocks, num_classes=5, stem_width=8)


THIN = {  # network, and how many of its layers have gates, counted by hand
    "resnet18": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), 4),
    "resnet50": (lambda: ResNet(Bottleneck, [1] * 4, num_classes=5, width_per_group=16), 8 + 1),
    "wrn": (lambda: WideResNet(5, depth=10, width=1), 3),
    "densenet": (lambda: DenseNet(4, (2, 2, 2, 2), 8, num_classes=5), 8),
    "mobilenet_v2": (lambda: MobileNetV2(5, 0.25, MOBILE), 5),
    "mobilenet_v3_small": (lambda: NETWORKS["mobilenet_v3_small"](5), 23),
    "efficientnet": (lambda: EfficientNet(MBCONV, 0.2, num_classes=5, last_channel=32), 8),
    "squeezenet": (lambda: squeezenet1_1(num_classes=5), 25),
    "googlenet": (lambda: googlenet(num_classes=5, aux_logits=False, init_weights=False), 57),
    "regnet": (regnet, 5),
    "shufflenet": (lambda: ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], num_classes=5), 10),
    "vgg16_bn": (lambda: NETWORKS["vgg16_bn"](5), 13),
    "lenet5": (lambda: NETWORKS["lenet5"](5), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", THIN)
def test_the_cut_is_exact_and_its_size_known(name):
    torch.manual_seed(0)
    make, gated_layers = THIN[name]
    net, places = place_gates(make())
    assert len(gate_layers(net)) == gated_layers
    assert sum(place.why_not is None for place in places) == gated_layers
    found = check(net, 32, patterns=1)
    assert found["error"] <= 1e-9 and found["counts"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_for_grey_images(name):
    net = NETWORKS[name](num_classes=5, image_shape=(1, 32, 32)).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_lenet5_before_it_was_built_for_its_images():
    """A checkpoint without image_shape has its layers by number, and 25 positions."""
    description = {"library": "sparsereg", "name": "lenet5", "num_classes": 10}
    net = rebuild(description | {"without_using_gate": True})
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["0.weight"] == (20, 3, 5, 5) and shapes["7.weight"] == (500, 1250)
    now = rebuild(description | {"image_shape": [3, 32, 32], "without_using_gate": True})
    assert now.fc1.in_features == 1250
    with pytest.raises(UserError, match="lenet5 takes images of 16x16 and larger, not 8x8"):
        rebuild(description | {"image_shape": [3, 8, 8]})


def test_a_residual_block_without_open_gates_leaves_a_constant():
    torch.manual_seed(0)
    net, _ = place_gates(THIN["resnet18"][0]())
    cost, x = ExpectedCost(net, (3, 32, 32)), images(32)
    net = net.double().eval()
    for gate in gate_layers(net).values():
        gate.qz_loga.data.fill_(10.0)
    randomise(net, x)
    gate_layers(net)["layer2.0.conv1"].qz_loga.data.fill_(-10.0)
    assert largest_difference(net, x) <= 1e-9
    small = compact(net)
    remaining = small.state_dict()
    weights = [name for name, _ in net.named_parameters() if name not in remaining]
    weights = [name for name in weights if not name.endswith("qz_loga")]
    assert weights == [
        *(f"layer2.0.{layer}" for layer in ("conv1.weight", "bn1.weight", "bn1.bias")),
        *(f"layer2.0.{layer}" for layer in ("conv2.weight", "bn2.weight", "bn2.bias")),
    ]
    is_open = torch.cat([gate.qz_loga.detach() > 0 for gate in gate_layers(net).values()])
    assert cost.count(is_open)["params"] == parameters(small)
