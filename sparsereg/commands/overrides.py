"""What is typed, KEY=VALUE, read by Hydra's own parser, and written so that it can be typed."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from sparsereg.errors import UserError

CONFIG = Path(__file__).parents[1] / "config"


@functools.lru_cache(maxsize=1000)
def parse(override: str) -> Override:
    """Raises OverrideParseException, which `hints.explain` puts into words."""
    return OverridesParser.create().parse_overrides([override])[0]


def key_of(override: str) -> str:
    """The setting, or the group, that an override chooses: `optimizer.lr`."""
    return parse(override).key_or_group


def group_of(override: str) -> str:
    """The part before the first dot: `optimizer`."""
    return key_of(override).partition(".")[0]


def typed() -> list[str]:
    """The overrides of this command line."""
    return list(HydraConfig.get().overrides.task)


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
