"""From a file to a network: read so that no wrong one slips through."""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsereg.commands.comparable import complete
from sparsereg.errors import UserError
from sparsereg.files import check_checkpoint_file, write_atomically
from sparsereg.networks import check_takes, rebuild
from sparsereg.surgery.plain_graph import build, shapes

PARTS = ("config", "network", "data")  # of what this project adds to a checkpoint
OPTIONAL_GATES = {  # part of their keys: how they are missed, and the setting
    "reduction_gates": ("reductions have", "gate_reductions"),
    "stem_gates": ("stem has", "model.gate_stem"),
}
LARGEST_IMAGE = 2**26  # numbers in one image


def write_checkpoint(content: dict, path: Path) -> None:
    """torch.save, atomically; to a full disk torch alone would raise a cryptic RuntimeError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def read_checkpoint(path: str | Path, key: str = "ckpt_path") -> dict:
    """The content of a checkpoint of this project: plain types and tensors, on the CPU.

    Args:
        path: the file.
        key: the setting that names it, for the message.

    Raises:
        UserError: missing, damaged or foreign file, or one with objects that are not plain data.
    """
    check_checkpoint_file(path, key)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that was made to fail can raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{key}={path} cannot be loaded safely (weights_only=True): {reason}"
        ) from None
    if not is_ours(checkpoint):
        raise UserError(f"{key}={path} was not written by sparsereg's train.py")
    checkpoint["sparsereg"]["config"] = complete(checkpoint["sparsereg"]["config"])
    return checkpoint


def is_ours(checkpoint: object) -> bool:
    """Has it all that a network and its data are rebuilt from, of the right types?"""
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("sparsereg"), dict):
        return False
    state, ours, loops = (checkpoint.get(key) for key in ("state_dict", "sparsereg", "loops"))
    if not isinstance(state, dict) or not all(isinstance(ours.get(k), dict) for k in PARTS):
        return False
    if not is_list_of(str, ours.get("overrides", [])) or not is_record_of_data(ours["data"]):
        return False
    shape = ours["data"]["image_shape"]
    own = ours["network"].get("image_shape", shape)
    if not is_list_of(int, own) or own != shape:
        return False
    return is_compact(checkpoint) or (isinstance(loops, dict) and "fit_loop" in loops)


def is_record_of_data(data: dict) -> bool:
    """The classes, and of the images mean, standard deviation and shape (C, H, W)."""
    shape = data.get("image_shape")
    if not is_list_of(int, shape) or len(shape) != 3 or not all(n >= 1 for n in shape):
        return False
    statistics = is_list_of(float, data.get("mean")) and is_list_of(float, data.get("std"))
    classes = data.get("classes")
    return statistics and math.prod(shape) <= LARGEST_IMAGE and is_list_of(str, classes)


def is_list_of(kind: type, values: object) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def network_state(checkpoint: dict) -> dict:
    """The network's part of a checkpoint's state dict.

    Raises:
        UserError: it holds something else than tensors of numbers that are there one by one.
    """
    state = {k[4:]: t for k, t in checkpoint["state_dict"].items() if str(k).startswith("net.")}
    for key, tensor in state.items():
        if not is_whole(tensor):
            raise UserError(f"the checkpoint's {key} is no plain tensor")
    return state


def is_whole(tensor: object) -> bool:
    """Are all its numbers in the file? A tensor can also be a view that repeats a few of them, so
    large that no memory holds its copy."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_quantized:
        return False
    if tensor.device.type != "cpu" or tensor.is_complex():
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def load_weights(net: nn.Module, checkpoint: dict, new_gates: bool = False, hint: str = "") -> None:
    """Load a checkpoint's weights, and its gates, into `net`, strictly.

    Args:
        net: the network.
        checkpoint: from `read_checkpoint`.
        new_gates: leave the gates of `net` as they are, whether the checkpoint has gates or not.
        hint: what to do if it does not fit, for the message.

    Raises:
        UserError: a key is missing or unexpected, or a shape differs.
    """
    state, own = network_state(checkpoint), net.state_dict()
    own_gates = {key: tensor for key, tensor in own.items() if key.endswith("qz_loga")}
    if new_gates and own_gates:
        state = {k: t for k, t in state.items() if not k.endswith("qz_loga")} | own_gates
    check_fits(state, own, hint)
    net.load_state_dict(state)


def is_gated(state: Mapping) -> bool:
    return any(key.endswith("qz_loga") for key in state)


def check_fits(state: Mapping, own: Mapping, hint: str = "") -> None:
    """Raise UserError that names what differs between a loaded and the network's own state."""
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    for part, (what, setting) in OPTIONAL_GATES.items():
        if any(part in key for key in missing + unexpected) and is_gated(own):
            raise UserError(
                f"the checkpoint's {what} {'no ' if missing else ''}gates: use "
                f"{setting}={'false' if missing else 'true'}"
            )
    if unexpected and all(key.endswith("qz_loga") for key in unexpected):
        raise UserError(
            "the checkpoint has gates and this network has none "
            f"({len(unexpected)} qz_loga unexpected): use without_using_gate=false"
        )
    for what, keys in (("lacks", missing), ("has in addition", unexpected)):
        if keys:
            raise UserError(f"the checkpoint does not fit: it {what} {shorten(keys)}{hint}")
    different = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if state[key].shape != own[key].shape
    ]
    if different:
        raise UserError(
            f"the checkpoint has other widths or classes than this network: {shorten(different)}"
            f"{hint}"
        )


def check_classes(checkpoint: dict, classes: list[str], key: str = "the checkpoint") -> None:
    """Raise UserError unless the data have the classes that the checkpoint was trained on."""
    trained = checkpoint["sparsereg"]["data"]["classes"]
    if trained != list(classes):
        raise UserError(
            f"the data have the classes {shorten(classes)}, but {key} was trained on "
            f"{shorten(trained)}: choose its data with data=… and data.root=…"
        )


def check_images(checkpoint: dict, image_shape: tuple[int, int, int]) -> None:
    """Raise UserError unless the data have images of the (C, H, W) that it was trained on."""
    trained = tuple(checkpoint["sparsereg"]["data"]["image_shape"])
    if tuple(image_shape) != trained:
        raise UserError(
            f"the data have images of shape {tuple(image_shape)}, but the checkpoint was trained "
            f"on {trained}: choose its data with data=… and data.root=…"
        )


def shorten(items: list[str]) -> str:
    return ", ".join(items[:2]) + (f" and {len(items) - 2} more" if len(items) > 2 else "")


def is_compact(checkpoint: dict) -> bool:
    """Does it hold a network that was cut, not one that the configuration describes?"""
    return "operations" in checkpoint["sparsereg"]["network"]


def new_network(checkpoint: dict) -> nn.Module:
    """The network of a checkpoint, with new weights.

    That of a compact one has in `meta["dense"]` the size of the dense network it was cut from.

    Raises:
        UserError: the checkpoint describes no network.
    """
    description = checkpoint["sparsereg"]["network"]
    try:
        if not is_compact(checkpoint):
            return rebuild(description)
        data = checkpoint["sparsereg"]["data"]
        own = shapes(description, data["image_shape"], len(data["classes"]))
        check_fits(network_state(checkpoint), own)
        net = build(description)
        net.meta["dense"] = description["dense"]
        return net
    except UserError:
        raise
    except Exception as error:  # whatever torch says to arguments that make no sense
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the checkpoint describes no network ({reason})") from error


def load(path: str | Path, key: str = "ckpt_path") -> nn.Module:
    """The network of a checkpoint or compact file, in eval mode on the CPU.

    `net(images)` gives logits. Images are (N, C, H, W), scaled to [0, 1] and normalised with the
    mean and standard deviation that `read_checkpoint(path)["sparsereg"]["data"]` names, beside the
    classes.

    Raises:
        UserError: see `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path, key)
    net = new_network(checkpoint)
    load_weights(net, checkpoint)
    if is_compact(checkpoint):
        check_takes(net, tuple(checkpoint["sparsereg"]["data"]["image_shape"]))
    return net.eval()
