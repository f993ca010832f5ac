"""Nonsense in a description of a network: one UserError, before anything is built or allocated."""

import copy

import pytest
import torch
from torch import nn

from sparsereg.checkpoint import load_weights, new_network
from sparsereg.compact import compact
from sparsereg.errors import UserError
from sparsereg.sparsity.size import count
from sparsereg.surgery.plain_graph import build, describe

SHAPE = (3, 8, 8)


@pytest.fixture
def checkpoint() -> dict:
    """What a compact file of a small network holds."""
    conv = nn.Conv2d(3, 4, 3, padding=1)
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net = compact(nn.Sequential(conv, *head))
    network = describe(net) | {"dense": count(net, SHAPE)}
    data = {"classes": ["a", "b"], "image_shape": [*SHAPE]}
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    return {"state_dict": state, "sparsereg": {"network": network, "data": data}}


def layer(name: str = "0", **settings):
    """Settings of a layer changed."""
    return lambda network: network["layers"][name][1].update(settings)


def operation(number: int, position: int, value):
    """A part of an operation changed: name, how, what, arguments, named arguments."""
    return lambda network: network["operations"][number].__setitem__(position, value)


def rename(name: str):
    """The first layer under another name."""

    def change(network: dict) -> None:
        network["layers"][name] = network["layers"].pop("0")
        network["operations"][1][2] = name

    return change


X = {"result_of": "input_1"}
NONSENSE = {
    "no table": lambda n: n.clear(),
    "layers in a list": lambda n: n.update(layers=[1]),
    "operations in a table": lambda n: n.update(operations={}),
    "no operation": lambda n: n["operations"].clear(),
    "two inputs": lambda n: n["operations"].insert(0, copy.deepcopy(n["operations"][0])),
    "no output": lambda n: n["operations"].pop(),
    "an operation after the output": lambda n: n["operations"].append(
        ["y", "output", "output", [], {}]
    ),
    "a short operation": lambda n: n["operations"][1].pop(),
    "an operation that is a text": lambda n: n["operations"].__setitem__(1, "call_module"),
    "a name twice": operation(2, 0, "input_1"),
    "a keyword for a name": operation(1, 0, "class"),
    "a number for a name": operation(1, 0, 7),
    "a dunder for a name": operation(1, 0, "__class__"),
    "a result that is not there": operation(1, 3, [{"result_of": "later"}]),
    "a result by a list": operation(1, 3, [{"result_of": ["input_1"]}]),
    "no arguments": operation(1, 3, []),
    "too many arguments": operation(1, 3, [X] * 5),
    "arguments in a table": operation(1, 3, {"a": 1}),
    "an argument of another name": operation(1, 4, {"no_such": 1}),
    "an argument with a dunder": operation(1, 4, {"__x": 1}),
    "deep arguments": operation(1, 3, [[[[[[1]]]]]]),
    "a tensor": operation(1, 3, [torch.zeros(2)]),
    "infinite": operation(1, 3, [float("inf")]),
    "a default for the input": operation(0, 3, [1]),
    "a list for what": operation(1, 2, ["0"]),
    "a list for how": operation(1, 1, ["call_module"]),
    "an unknown setting": layer(no_such=1),
    "a device": layer(device="cuda"),
    "a type of numbers": layer(dtype="float64"),
    "10¹² channels": layer(out_channels=10**12),
    "more channels than the file has": layer(out_channels=2**30),
    "no channels": layer(out_channels=0),
    "stride 0": layer(stride=0),
    "negative stride": layer(stride=(-1, 1)),
    "a kernel of no size": layer(kernel_size=0),
    "a kernel of three numbers": layer(kernel_size=(3, 3, 3)),
    "a huge kernel": layer(kernel_size=2**30),
    "huge padding": layer(padding=2**30),
    "groups that do not divide": layer(groups=2),
    "true channels": layer(out_channels=True),
    "a text for a number": layer(kernel_size="3"),
    "nested settings": layer(kernel_size=[[3]]),
    "a layer without settings": lambda n: n["layers"].update({"0": ["Conv2d"]}),
    "a type that is a list": lambda n: n["layers"]["0"].__setitem__(0, ["Conv2d"]),
    "a layer nobody calls": lambda n: n["layers"].update(more=["ReLU", {}]),
    "a layer within a layer": rename("1.weight"),
    "an attribute": rename("forward"),
    "an attribute of an attribute": rename("a.training"),
    "the class": rename("__class__.__base__.__base__.forward"),
    "a private attribute": rename("_modules"),
    "an upwards path": rename("..a"),
    "no dense size": lambda n: n.pop("dense"),
    "a dense size of nothing": lambda n: n.update(dense={"params": 0, "macs": 0}),
    "a dense size in words": lambda n: n.update(dense={"params": "many", "macs": 1}),
    "other classes": lambda n: n["layers"]["4"][1].update(out_features=3),
    "other channels": lambda n: n["layers"]["4"][1].update(in_features=5),
    "an enormous result": lambda n: n["layers"]["2"][1].update(output_size=2**20),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense(kind, checkpoint):
    forward = nn.Module.__dict__.get("forward"), nn.ReLU.forward
    network = checkpoint["sparsereg"]["network"]
    NONSENSE[kind](network)
    if kind == "no table":
        with pytest.raises(UserError):
            build(network)
        return
    with pytest.raises(UserError) as error:
        new_network(checkpoint)
    assert "\n" not in str(error.value)
    assert (nn.Module.__dict__.get("forward"), nn.ReLU.forward) == forward


def test_what_is_not_nonsense(checkpoint):
    net = new_network(checkpoint)
    load_weights(net, checkpoint)
    assert net(torch.zeros(1, *SHAPE)).shape == (1, 2)


TENSORS = {
    "one number, 10¹² times": lambda: torch.zeros(1).expand(4, 3, 10**6, 10**6),
    "no tensor": lambda: [[1.0]],
    "sparse": lambda: torch.zeros(4, 3, 3, 3).to_sparse(),
    "complex": lambda: torch.zeros(4, 3, 3, 3, dtype=torch.complex64),
    "without numbers": lambda: torch.zeros(4, 3, 3, 3, device="meta"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_weights_that_are_not_all_there(kind, checkpoint):
    checkpoint["state_dict"]["net.0.weight"] = TENSORS[kind]()
    with pytest.raises(UserError, match=r"0\.weight is no plain tensor"):
        new_network(checkpoint)
