"""What is typed, KEY=VALUE, read by Hydra's own parser, and written so that it can be typed."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from sparsereg.commands.comparable import flatten, repeats_flat_key
from sparsereg.commands.settings import SETTINGS, Role, roles_of, settings_with, to_plain
from sparsereg.commands.values import is_plain
from sparsereg.errors import UserError

CONFIG = Path(__file__).parents[1] / "config"
GROUPS = ("data", "model", "optimizer", "scheduler", "loss")  # of classes that a file may choose
AVERAGED = "callbacks.average_weights"
DECIDES_WIDTHS = ("library", "name", "image_size")
ASKED_ANEW = ("without_using_gate", "finetune_epochs", "finetune_lr")


@functools.lru_cache(maxsize=1000)
def parse(override: str) -> Override:
    """Raises OverrideParseException, which `hints.explain` puts into words."""
    return OverridesParser.create().parse_overrides([override])[0]


def key_of(override: str) -> str:
    """The setting, or the group, that an override chooses: `optimizer.lr`."""
    return parse(override).key_or_group


def group_of(override: str) -> str:
    """The group of what an override sets: `optimizer`."""
    return first_part(key_of(override))


def first_part(key: str) -> str:
    return key.partition(".")[0]


def typed() -> list[str]:
    """The overrides of this command line."""
    return list(HydraConfig.get().overrides.task)


@functools.cache  # composing takes a tenth of a second
def default_settings() -> DictConfig:
    """Those of train.py when nothing is typed; read only."""
    cfg = compose("train")
    OmegaConf.set_readonly(cfg, True)
    return cfg


def given_settings(cfg: DictConfig) -> set[str]:
    """The command line's own settings: typed, or changed by what is typed (`trainer=gpu`).

    A group is, if another class is chosen for it, or the group is typed: another data set or
    optimizer has other keys. Every trainer has the same.
    """
    now, defaults = (flatten(to_plain(c)) for c in (cfg, default_settings()))
    changed = {key for key in now if now[key] != defaults.get(key)}
    keys = {key_of(override) for override in typed()}
    return (changed | keys) - {"trainer"}


def refuse_other_groups(command: str, *allowed: str) -> None:
    """Raise UserError for a setting on the command line that would have no effect."""
    for override in typed():
        if group_of(override) not in allowed:
            names = ", ".join(allowed)
            raise UserError(f"{override}: the checkpoint knows it; {command} takes {names}")


def as_argument(value: Any, key: str = "ckpt_path") -> str:
    """`KEY=VALUE` as it can be typed, whatever characters a path has."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, list):
        return shlex.quote(f"{key}={value}")
    if re.fullmatch(r"[\w./~-]+", str(value)):
        return f"{key}={value}"
    return shlex.quote(f'{key}="{value}"')


def command_to_go_on(script: str, checkpoint: Path, *more: str) -> str:
    """The line that goes on from a checkpoint of this run, with what that does not decide."""
    words = [f"python {script}", as_argument(checkpoint), *more]
    if HydraConfig.initialized():
        cfg = compose("train", overrides=typed())
        again = {*settings_with(Role.AGAIN)} & given_settings(cfg)
        of_script = [key for key in again if script == "train.py" or key.startswith("data.")]
        words += [as_argument(OmegaConf.select(cfg, key), key) for key in sorted(of_script)]
    return " ".join(words)


def command_again(cfg: DictConfig, *more: str) -> str:
    """This line of train.py without what starts its run or is about gates, and with `more`.

    The settings `cfg` of a resumed run came with its checkpoint: they are named, too.
    """
    left_out = Role.STARTS | Role.OF_GATES
    kept = [
        override
        for override in typed()
        if not roles_of(key_of(override)) & left_out and key_of(override) not in ASKED_ANEW
    ]
    lacking = settings_beside(kept, cfg) if cfg.resume_training else []
    return " ".join(["python train.py", *lacking, *map(shlex.quote, kept), *more])


def settings_beside(kept: list[str], cfg: DictConfig) -> list[str]:
    """What is to be typed beside `kept` for the settings `cfg`, but for gates and what is shown."""
    wanted, now = to_plain(cfg), to_plain(default_settings())
    near = {group: nearest_option(group, wanted[group]) for group in GROUPS}
    groups = [f"{g}={near[g]}" for g in GROUPS if near[g] != nearest_option(g, now[g])]
    flat = flatten(wanted)
    if AVERAGED in flat and AVERAGED not in flatten(now):
        groups.append("callbacks=averaged")
    typed_groups = {key_of(override) for override in kept}
    groups = [group for group in groups if key_of(group) not in typed_groups]
    now = flatten(to_plain(compose("train", overrides=[*groups, *kept])))
    values = [
        as_argument(value, key)
        for key, value in flat.items()
        if now.get(key) != value and is_said_again(key) and not repeats_flat_key(key, flat)
    ]
    return groups + values


def choose_as(config: dict, cfg: DictConfig) -> str:
    """The end of a message that names network and data of a checkpoint's settings, in words to be
    typed, where `cfg` has others; empty where it has the same."""
    words = []
    for group in ("model", "data"):
        saved, now = known_values(group, config.get(group)), to_plain(cfg)[group]
        if "_target_" not in saved:
            continue
        option = nearest_option(group, saved)
        if option != nearest_option(group, now):
            words.append(f"{group}={option}")
            now = option_values(group, option)
        others = [key for key in DECIDES_WIDTHS if key in saved and saved[key] != now.get(key)]
        words += [as_argument(saved[key], f"{group}.{key}") for key in others]
    return f"; it was trained with {' '.join(words)}" if words else ""


def known_values(group: str, saved: Any) -> dict[str, Any]:
    """What a checkpoint says of a group, as far as it is what settings can be."""

    def is_known(key: Any, value: Any) -> bool:
        row = SETTINGS.get(f"{group}.{key}")
        return isinstance(value, str) if key == "_target_" else row is not None and row.check(value)

    items = saved.items() if isinstance(saved, dict) else ()
    return {key: value for key, value in items if is_plain(value) and is_known(key, value)}


def is_said_again(key: str) -> bool:
    """Does a setting that came with a checkpoint concern another run that starts from it?"""
    passing = Role.STARTS | Role.OF_GATES | Role.NO_EFFECT
    is_value = key in SETTINGS and key not in (*GROUPS, *ASKED_ANEW)
    return is_value and (key == "output_dir" or not roles_of(key) & passing)


def option_of(group: str, class_name: Any) -> str:
    """The first option of a group that configures the class of this name."""
    for path in sorted((CONFIG / group).glob("*.yaml")):
        target = OmegaConf.load(path).get("_target_", "")
        if target.rpartition(".")[2] == class_name:
            return path.stem
    raise UserError(f"the checkpoint's {group}={class_name} is none that this version knows")


def nearest_option(group: str, chosen: dict[str, Any]) -> str:
    """The option of a group that comes nearest to its settings: by class, name, other values."""

    def likeness(option: str) -> tuple[bool, bool, int]:
        values = option_values(group, option)
        is_same = {key: chosen.get(key) == value for key, value in values.items()}
        classes = (str(own.get("_target_")).rpartition(".")[2] for own in (values, chosen))
        return len({*classes}) == 1, is_same.get("name", False), sum(is_same.values())

    return max(sorted(path.stem for path in (CONFIG / group).glob("*.yaml")), key=likeness)


def option_values(group: str, option: str) -> dict[str, Any]:
    """What a file of a group says, and those that it begins with."""
    own = OmegaConf.to_container(OmegaConf.load(CONFIG / group / f"{option}.yaml"))
    values = {}
    for base in own.pop("defaults", []):
        values |= {} if base == "_self_" else option_values(group, base)
    return values | own


def trains_several() -> bool:
    """Does this command line train several networks for a budget? The same line goes on."""
    if not HydraConfig.initialized():
        return False
    cfg = compose("train", overrides=typed())
    return cfg.max_drop is not None or OmegaConf.is_list(cfg.target_sparsity)


def same_command() -> str:
    """This line of train.py."""
    return " ".join(["python train.py", *map(shlex.quote, typed())])
