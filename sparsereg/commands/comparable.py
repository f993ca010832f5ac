"""What makes two runs differ: their settings as one flat table {dotted key: value}."""

from pathlib import Path
from typing import Any

from sparsereg.commands.settings import Role, budget_of, roles_of

DEEPEST, MOST = 4, 2000  # levels of groups, settings
AVERAGING = "callbacks.average_weights.decay"  # None: no average


def comparable(config: dict) -> dict[str, Any]:
    """What decides the result of a run, which two runs that are the same have in common."""
    flat = {k: v for k, v in flatten(complete(config)).items() if Role.NO_EFFECT not in roles_of(k)}
    if flat.get("cost") != "latency" and flat.get("round_to") != "auto":
        flat = {k: v for k, v in flat.items() if not k.startswith("latency.")}
    flat = {k: v for k, v in flat.items() if v is not None}  # which older runs may lack
    places = [key for key in flat if Role.PATH in roles_of(key) and isinstance(flat[key], str)]
    return flat | {key: str(Path(flat[key]).expanduser().resolve()) for key in places}


def complete(config: dict) -> dict:
    """With what the settings of an older run could not say of its network: no gates shared by
    layers, nor behind barriers; none on GoogleNet's stem."""
    model = config.get("model")
    if not isinstance(model, dict):
        return config
    newer = ("coupled", "behind_barriers") if "library" in model else ("gate_stem",)
    return {**config, "model": {**dict.fromkeys(newer, False), **model}}


def differences(old: dict, new: dict) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of all values that differ in two plain configurations; classes
    are compared by name, whichever module an older version had them in."""
    old, new = flatten(old), flatten(new)
    keys = [*old, *(key for key in new if key not in old)]
    pairs = [(key, old.get(key), new.get(key)) for key in keys]
    return [(key, before, now) for key, before, now in pairs if before != now]


def reported_settings(config: dict) -> dict[str, Any]:
    """The settings of one config.yaml.

    `start` is what the run began with: scratch, trained, cut (a compact network), or resumed if
    its beginning is not known. `lambda_l0` is "no gates" without gates, and None with a target,
    which finds it. Classes go by their name: `optimizer: AdamW`.
    """
    flat = flatten(config)
    if flat.get("loss.teacher") is not None:
        flat["loss.teacher"] = "yes"  # each seed may have its own
    if "callbacks" in config:
        flat.setdefault(AVERAGING, None)
    settings = {
        key: value
        for key, value in flat.items()
        if Role.UNSEEN not in roles_of(key) and not repeats_flat_key(key, flat)
    }
    if config.get("without_using_gate"):
        settings = {k: v for k, v in settings.items() if Role.OF_GATES not in roles_of(k)}
        settings["lambda_l0"] = "no gates"
    elif budget_of(config) is not None:
        settings["lambda_l0"] = None
    return settings | {"start": start(config)}


def network_name(settings: dict[str, Any]) -> Any:
    """`resnet18`, not the name of the function that builds it; the class where it has no name."""
    return settings.get("model.name") or settings.get("model")


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}; `optimizer._target_` becomes `optimizer`, the last part of its name.

    Raises:
        ValueError: it is larger or deeper than settings are.
    """
    if prefix.count(".") > DEEPEST:
        raise ValueError(f"settings are nested too deeply: {prefix}")
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and Role.BY_LAYER not in roles_of(prefix + key):
            flat |= flatten(value, f"{prefix}{key}.")
        elif key == "_target_":
            flat[prefix.removesuffix(".")] = str(value).rpartition(".")[2]
        elif key != "_partial_":
            flat[f"{prefix}{key}"] = value
        if len(flat) > MOST:
            raise ValueError(f"more than {MOST} settings")
    return flat


def value_at(config: dict, key: str, default: Any = None) -> Any:
    """The setting of a dotted key; older configurations may lack it."""
    for name in key.split("."):
        if not isinstance(config, dict) or name not in config:
            return default
        config = config[name]
    return config


def repeats_flat_key(key: str, flat: dict) -> bool:
    """As `model.droprate_init` does, which is `droprate_init` unless it was set by itself."""
    group, _, name = key.rpartition(".")
    return group != "" and name in flat and flat[name] == flat[key]


def start(config: dict) -> str:
    if config.get("resume_training"):
        return "resumed"
    path = config.get("ckpt_path")
    if path is None:
        return "scratch"
    return "cut" if str(path).endswith("compact.pt") else "trained"
