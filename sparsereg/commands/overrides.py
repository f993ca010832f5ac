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

from sparsereg.commands.comparable import flatten
from sparsereg.commands.settings import Role, roles_of, settings_with, to_plain
from sparsereg.errors import UserError

CONFIG = Path(__file__).parents[1] / "config"
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


def given_settings(cfg: DictConfig) -> set[str]:
    """The command line's own settings: typed, or changed by what is typed (`trainer=gpu`).

    A group is, if another class is chosen for it, or the group is typed: another data set or
    optimizer has other keys. Every trainer has the same.
    """
    now, defaults = (flatten(to_plain(c)) for c in (cfg, compose("train")))
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


def command_again(*more: str) -> str:
    """This line of train.py without what starts its run or is about gates, and with `more`."""
    left_out = Role.STARTS | Role.OF_GATES
    kept = [
        override
        for override in typed()
        if not roles_of(key_of(override)) & left_out and key_of(override) not in ASKED_ANEW
    ]
    return " ".join(["python train.py", *map(shlex.quote, kept), *more])
