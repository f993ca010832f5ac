"""ONE table of settings: every key that can be set has its row, and every row a key."""

from itertools import zip_longest

import pytest
from hydra import compose, initialize_config_dir

from sparsereg.commands.comparable import flatten
from sparsereg.commands.overrides import CONFIG
from sparsereg.commands.settings import (
    SETTINGS,
    Role,
    roles_of,
    settings_that_need,
    to_plain,
)

NEEDED = {"data=image_folder": ["data.root=x"], "model=timm": ["model.name=x"]}
NEEDED["model=torchvision"] = NEEDED["model=timm"]
GROUPS = [
    [f"{folder.name}={file.stem}" for file in sorted(folder.glob("*.yaml"))]
    for folder in CONFIG.iterdir()
]


def keys_of(*overrides: str) -> set[str]:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides])
    return set(flatten(to_plain(cfg)))


@pytest.fixture(scope="module")
def all_keys() -> set[str]:
    keys = set()
    for options in zip_longest(*GROUPS):  # one of each group at a time
        chosen = [option for option in options if option]
        needed = [setting for option in chosen for setting in NEEDED.get(option, [])]
        keys |= keys_of(*chosen, *needed)
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return keys | set(compose("report")) | set(compose("predict"))


def test_every_setting_has_a_row(all_keys):
    groups = {key.removesuffix(".*") for key in SETTINGS if key.endswith(".*")}
    without = {k for k in all_keys if k not in SETTINGS and k.partition(".")[0] not in groups}
    assert not without


def test_every_row_is_a_setting(all_keys):
    known = all_keys | {"callbacks", "logger", "callbacks.*", "logger.*"}
    assert not SETTINGS.keys() - known


def test_roles_say_what_a_setting_means():
    needing = ["target_warmup", "settle_epochs", "dual_lr"]
    assert settings_that_need("target_sparsity") == needing
    assert Role.KEPT in roles_of("gate_lr") and Role.OF_GATES in roles_of("gate_lr")
    assert Role.NO_EFFECT in roles_of("logger.mlflow.tracking_uri")
    assert Role.UNSEEN in roles_of("callbacks.checkpoints")
    assert roles_of("callbacks.average_weights.decay") == roles_of("no.such") == Role.NONE


def test_what_a_setting_needs_is_a_setting():
    assert {row.needs for row in SETTINGS.values()} - {""} <= SETTINGS.keys()


MACHINE = (
    "output_dir",
    "data.root",
    "data.cache_dir",
    "loss.teacher",
    "model.pretrained",
    "compile",
)


@pytest.mark.parametrize("key", [*MACHINE, "trainer.devices", "logger.mlflow.tracking_uri"])
def test_a_file_does_not_decide_about_this_machine(key):
    assert Role.MACHINE in roles_of(key)
