"""A cut network as plain data: the same network comes back, and nothing else gets in."""

import io
import os

import pytest
import torch
from networks import Net, googlenet, head, images
from torch import nn
from torch.nn import functional as F

from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.model.googlenet import ACTIVATIONS
from sparsereg.surgery.plain_graph import build, describe


def through_a_file(net: nn.Module) -> nn.Module:
    """Saved, read without pickled code, built and loaded."""
    file = io.BytesIO()
    torch.save({"network": describe(net), "state_dict": net.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    built = build(content["network"]).to(images().dtype)
    built.load_state_dict(content["state_dict"])
    return built.eval()


@pytest.mark.parametrize("act_fn_name", ACTIVATIONS)
def test_a_cut_googlenet_comes_back(act_fn_name):
    net, x = compact(googlenet(act_fn_name)), images(16)
    built = through_a_file(net)
    assert torch.equal(built(x), net(x))
    assert built.state_dict().keys() == net.state_dict().keys()
    assert describe(built) == describe(net)


LAYERS = {
    "convolution": nn.Conv2d(3, 4, (3, 1), 2, "valid", 2, bias=False, padding_mode="reflect"),
    "same padding": nn.Conv2d(3, 4, 3, padding="same"),
    "depthwise": nn.Conv2d(3, 3, 3, groups=3),
    "BatchNorm": nn.BatchNorm2d(3, eps=0.5, affine=False),
    "leaky relu": nn.LeakyReLU(0.4),
    "gelu": nn.GELU("tanh"),
    "elu": nn.ELU(0.5),
    "max pool": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "average pool": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive pool": nn.AdaptiveAvgPool2d((2, 3)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_settings_of_layers_come_back(layer):
    net = compact(nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.Conv2d(layer_width(layer), 2, 1)))
    net, x = net.double(), images()
    assert torch.equal(through_a_file(net)(x), net(x))


def layer_width(layer: nn.Module) -> int:
    return getattr(layer, "out_channels", 3)


def test_the_arguments_of_functions_come_back():
    def compute(n, x):
        x = F.leaky_relu(n.a(x), negative_slope=0.5)
        x = torch.cat([F.gelu(x, approximate="tanh"), n.b(x)], dim=1)
        return n.head(F.max_pool2d(x, kernel_size=2, stride=1) + F.avg_pool2d(x, 2, stride=1))

    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 4, 1), "head": head(8)}
    net, x = compact(Net(compute, **layers).double()), images()
    assert torch.equal(through_a_file(net)(x), net(x))


def test_a_network_of_unknown_parts_cannot_be_saved():
    net = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.FractionalMaxPool2d(2, 4)))
    with pytest.raises(UserError, match="FractionalMaxPool2d"):
        describe(net)


CODE = "__import__('os').system('echo executed')"
X = ["x", "placeholder", "x", [], {}]
RESULT = {"result_of": "x"}
OUTPUT = ["output", "output", "output", [{"result_of": "y"}], {}]
OPERATIONS = {  # how, what, arguments and named arguments of what is not known
    "foreign function": ["call_function", "os.system", ["echo executed"], {}],
    "eval": ["call_function", "builtins.eval", [CODE], {}],
    "function of torch": ["call_function", "torch.load", ["file"], {}],
    "foreign method": ["call_method", "__class__", [RESULT], {}],
    "method of tensors": ["call_method", "share_memory_", [RESULT], {}],
    "code for a method": ["call_method", f"relu(), {CODE}, x.relu", [RESULT], {}],
    "missing layer": ["call_module", f"a({CODE})", [RESULT], {}],
    "attribute": ["get_attr", "a.weight", [], {}],
    "code for a name": ["call_module", "a", [RESULT], {f"x={CODE}, y": 1}],
    "code for an input": ["placeholder", f"y={CODE}", [], {}],
    "quoted input": ["placeholder", f'y"): {CODE}; ("', [], {}],
    "output by another name": ["output", CODE, [RESULT], {}],
}
LAYER_NAMES = ("a'), " + CODE + ", ('", 'a"]', f"a({CODE})", "a b", "a;b", "", "a\n", "a..b")
LAYER_TYPES = ("os.system", "Module", "FractionalMaxPool2d", "__class__", CODE)


@pytest.fixture
def executed(monkeypatch):
    """What has been given to the shell."""
    commands = []
    monkeypatch.setattr(os, "system", commands.append)
    return commands


def refuse(description: dict, executed: list) -> None:
    with pytest.raises(UserError, match="unknown part"):
        build(description)(images())
    assert executed == []


def test_the_code_of_these_tests_is_dangerous(executed):
    eval(CODE)
    assert executed == ["echo executed"]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_unknown_operations_are_refused(operation, executed):
    layers = {"a": ["Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 1}]}
    refuse({"operations": [X, ["y", *operation], OUTPUT], "layers": layers}, executed)


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_names_that_are_no_names_are_refused(name, executed):
    layers = {name: ["ReLU", {}]}
    call = ["y", "call_module", name, [RESULT], {}]
    refuse({"operations": [X, call, OUTPUT], "layers": layers}, executed)
    call = [name, "call_function", "torch.relu", [RESULT], {}]
    refuse({"operations": [X, call, OUTPUT], "layers": {}}, executed)


@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_unknown_layers_are_refused(kind, executed):
    call = ["y", "call_module", "a", [RESULT], {}]
    refuse({"operations": [X, call, OUTPUT], "layers": {"a": [kind, {}]}}, executed)


def test_arguments_that_are_not_plain_are_refused(executed):
    call = ["y", "call_function", "torch.relu", [os.system], {}]
    refuse({"operations": [X, call, OUTPUT], "layers": {}}, executed)
