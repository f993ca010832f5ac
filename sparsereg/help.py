"""What `--help` prints: a script's own words, and its settings with the comments of their file."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from sparsereg.commands.overrides import CONFIG

LINE = re.compile(r"(?P<key>\w+): (?P<value>.*?)(?: # (?P<comment>.*))?")
GROUP = re.compile(r"  - (?P<key>\w+): (?P<value>\w+) # (?P<comment>.*)")
FLAGS = {
    "-m, --multirun": "one run for each value of a list: lambda_l0=0.5,1.0 seed=1,2",
    "--cfg job": "print all settings of this command; also --package trainer, --resolve",
    "--info": "print where the settings come from: --info defaults",
    "-cd, --config-dir": "a folder of your own options: -cd conf experiment=mine",
    "-sc, --shell-completion": 'eval "$(python train.py -sc install=bash)"',
}


class Entry(NamedTuple):
    """A setting, or a group: its default, and what the file says of it."""

    key: str
    value: str
    comment: str


def help_text(words: str, config_name: str, takes: Sequence[str] = ()) -> str:
    """All of it.

    Args:
        words: the docstring of the script, with its examples.
        config_name: the file that has its settings.
        takes: the keys and groups that it takes, if not all of the file.
    """
    text = (CONFIG / f"{config_name}.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
    settings, groups = (
        [entry for entry in find(pattern, text) if not takes or entry.key in takes]
        for pattern in (LINE, GROUP)
    )
    flags = FLAGS.items() if groups else [("--cfg job", FLAGS["--cfg job"])]
    parts = [words.strip(), "", "Settings, KEY=VALUE, with their defaults:", ""]
    parts += columns((f"{entry.key}={entry.value}", entry.comment) for entry in settings)
    if groups:
        parts += ["", "Groups, GROUP=OPTION; their keys are settings too, data.batch_size=64:", ""]
        parts += columns((f"{entry.key}={entry.value}", described(entry)) for entry in groups)
    return "\n".join([*parts, "", "Flags:", "", *columns(flags)])


def find(pattern: re.Pattern, text: str) -> list[Entry]:
    found = map(pattern.fullmatch, text.splitlines())
    return [Entry(match["key"], match["value"], match["comment"] or "") for match in found if match]


def described(group: Entry) -> str:
    options = ", ".join(sorted(path.stem for path in (CONFIG / group.key).glob("*.yaml")))
    return f"{group.comment}: {options}"


def columns(rows) -> list[str]:
    """Two columns, as wide as the terminal, the second one wrapped."""
    rows = list(rows)
    left = 2 + max(len(name) for name, _ in rows)
    width = min(shutil.get_terminal_size((100, 24)).columns, 120) - 2
    lines = []
    for name, words in rows:
        wrapped = textwrap.wrap(words, max(width - left, 30)) or [""]
        lines += [f"  {name:{left}}{wrapped[0]}".rstrip()]
        lines += [f"  {'':{left}}{line}" for line in wrapped[1:]]
    return lines
