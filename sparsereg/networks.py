"""Networks by name, from plain settings: those of this project, torchvision's and timm's."""

import difflib
import pickle
from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn

from sparsereg.commands.settings import SETTINGS
from sparsereg.commands.values import is_count, is_plain
from sparsereg.errors import UserError
from sparsereg.model.googlenet import GoogleNet
from sparsereg.model.small_images import NETWORKS
from sparsereg.surgery.insert import place_gates
from sparsereg.surgery.plain_graph import check_savable

# What a classifier alone needs: without the second classifiers of training
ONE_HEAD = {"aux_logits": False, "init_weights": True}
TORCHVISION = {"googlenet": ONE_HEAD, "inception_v3": ONE_HEAD}
MOST_CLASSES = 1_000_000
# Where files have the weights, the mean of those of several steps first
PARTS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "net")
SECOND_HEADS = ("aux1.", "aux2.", "AuxLogits.")


def rebuild(description: Mapping) -> nn.Module:
    """The network of a checkpoint, with new weights, from the settings that it keeps.

    Raises:
        UserError: one of them is unknown, or has no value that it may have.
    """
    settings = {key: value for key, value in description.items() if key != "pretrained"}
    classes = settings.pop("num_classes", 10)
    if not is_count(classes) or classes > MOST_CLASSES:
        raise UserError(f"the checkpoint's network has {classes} classes")
    for key, value in settings.items():
        if key == "image_shape":
            continue  # that of the data, which is_ours has checked
        row = SETTINGS.get(f"model.{key}")
        if row is None or not is_plain(value) or not row.check(value):
            raise UserError(f"the checkpoint's network has {key}={value}")
    make = new_network if "library" in settings else GoogleNet
    return make(num_classes=classes, **settings)


def new_network(
    library: str,
    name: str,
    num_classes: int = 10,
    pretrained: str | None = None,
    without_using_gate: bool = False,
    droprate_init: float = 0.5,
    temperature: float = 2 / 3,
    sampling: str = "per_sample",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    gate_inputs: str | Sequence[str] = (),
    coupled: bool = False,
    behind_barriers: bool = False,
    image_shape: Sequence[int] | None = None,
) -> nn.Module:
    """An image classifier, (N, C, H, W) -> logits (N, num_classes), with gates where they remove
    channels (`insert_gates`).

    Args:
        library: sparsereg, torchvision or timm.
        name: of the network in that library.
        pretrained: file with the weights of the network without gates; those of the last layer only
            count if it has as many classes.
        without_using_gate: no gates at all.
        droprate_init, temperature, sampling, include, exclude, gate_inputs: see `insert_gates`.
        coupled, behind_barriers: see `insert_gates`; older checkpoints have no such gates.
        image_shape: (C, H, W) of the images; None: colour images, as checkpoints without it had.

    Raises:
        UserError: unknown name, weights that do not fit, or a network without places for gates.
    """
    net = plain_network(library, name, num_classes, image_shape)
    if pretrained is not None:
        load_pretrained(net, pretrained, num_classes)
    if without_using_gate:
        return net
    settings = droprate_init, include, exclude, temperature, sampling
    settings += gate_inputs, coupled, behind_barriers
    example = None
    if image_shape is not None:
        check_takes(net, tuple(image_shape))
        example = torch.zeros(1, *image_shape)
    gated, _ = place_gates(net, *settings, example)
    check_savable(gated)
    return gated


def plain_network(
    library: str, name: str, num_classes: int, image_shape: Sequence[int] | None = None
) -> nn.Module:
    fitting = {} if image_shape is None else {"image_shape": image_shape}
    if library == "timm":
        timm = import_timm()
        check_name(library, name, timm.list_models())
        return timm.create_model(name, num_classes=num_classes, in_chans=(image_shape or [3])[0])
    if library == "torchvision":
        check_name(library, name, torchvision.models.list_models(module=torchvision.models))
        settings = {"weights": None, "num_classes": num_classes, **TORCHVISION.get(name, {})}
        return torchvision.models.get_model(name, **settings)
    check_name(library, name, [*NETWORKS])
    return NETWORKS[name](num_classes, **fitting)


def import_timm():
    try:
        import timm
    except ImportError:
        raise UserError("model=timm needs timm: pip install -r requirements-timm.txt") from None
    return timm


def check_name(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"model.name={name} is no network of {library}{hint}")


def load_pretrained(net: nn.Module, path: str, num_classes: int) -> None:
    """Load weights strictly, but for a last layer of another number of classes.

    Raises:
        UserError: no such file, or it is not a state dict of this network.
    """
    own = net.state_dict()
    state = without_prefix(read_state(path), own)
    state = {key: tensor for key, tensor in state.items() if not key.startswith(SECOND_HEADS)}
    differs = [key for key in own if key in state and state[key].shape != own[key].shape]
    is_last = {key.rpartition(".")[0] for key in differs}
    if len(is_last) == 1 and all(len(own[key]) == num_classes for key in differs):
        state |= {key: own[key] for key in differs}
    elif differs:
        raise UserError(f"model.pretrained={path}: {differs[0]} has another shape")
    for what, keys in (("lacks", own.keys() - state.keys()), ("adds", state.keys() - own.keys())):
        if keys:
            raise UserError(f"model.pretrained={path} does not fit: it {what} {min(keys)}")
    net.load_state_dict(state)


def without_prefix(state: dict[str, Tensor], own: Mapping) -> dict[str, Tensor]:
    """`module.` of parallel training, `_orig_mod.` of a compiled network, `net.` of a class around
    it: whatever all keys begin with, if they are the network's own behind it."""
    state.pop("n_averaged", None)  # of torch.optim.swa_utils
    key = next(iter(own))
    for prefix in [name.removesuffix(key) for name in state if name.endswith(key)]:
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def read_state(path: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"model.pretrained={path} cannot be read: {error.strerror}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise UserError(f"model.pretrained={path} is no file of plain weights") from None
    while isinstance(content, Mapping) and (parts := [k for k in PARTS if is_table(content, k)]):
        content = content[parts[0]]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"model.pretrained={path} is no state dict")
    if not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"model.pretrained={path} is no state dict")
    return dict(content)


def is_table(content: Mapping, key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def check_takes(net: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Raise UserError unless `net` can classify an image of this shape (C, H, W)."""
    was_training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *image_shape))
    except (RuntimeError, ValueError, IndexError) as error:
        channels, *sides = image_shape
        size = "x".join(map(str, sides)) + ("" if channels == 3 else f" in {channels} channel(s)")
        raise UserError(f"the network cannot take images of {size}: {error}") from error
    finally:
        net.train(was_training)
