"""The settings of a run that goes on, or is tested: they come with its checkpoint.

What a file says is never run. It chooses among the classes of this repository's own configuration
files, and gives plain values to known settings, each checked by its row in the table. Settings of
this machine (`Role.MACHINE`) never come from a file: where things are written, opened, logged or
sent, and on which devices. The command line says them.
"""

import copy
import re
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from sparsereg.commands.checks import check_settings
from sparsereg.commands.comparable import flatten
from sparsereg.commands.machine import check_devices, is_first_process
from sparsereg.commands.overrides import (
    AVERAGED,
    GROUPS,
    as_argument,
    default_settings,
    first_part,
    given_settings,
    key_of,
    option_of,
    typed,
)
from sparsereg.commands.settings import (
    SETTINGS,
    Role,
    roles_of,
    settings_that_need,
    settings_with,
    to_plain,
)
from sparsereg.commands.values import is_plain, is_plain_table
from sparsereg.errors import UserError, printable

TAKEN = (AVERAGED, "callbacks.epoch_seed")  # the callbacks that a file has a say in
EVALUATED = "callbacks.checkpoints.evaluate"  # best or last


def settings_of(checkpoint: dict, cfg: DictConfig, keys: tuple[str, ...] = ()) -> DictConfig:
    """Settings of the run that wrote a checkpoint, changed by this command line.

    Args:
        checkpoint: from `read_checkpoint`.
        cfg: the settings of this command line.
        keys: take these groups and settings only; all without.

    Raises:
        UserError: the checkpoint asks for more than plain values of known settings; or its run read
            files, or ran on devices, that this command line must name.
    """
    saved = saved_settings(checkpoint, keys)
    given = given_settings(cfg)
    options = [
        f"{group}={option_of(group, saved[group])}"
        for group in GROUPS
        if group in saved and group not in given
    ]
    if AVERAGED in saved and "callbacks" not in given:
        options.append("callbacks=averaged")
    cfg = compose("train", overrides=[*options, *typed()])
    for key, value in saved.items():
        own = key in given or first_part(key) in given or Role.MACHINE in roles_of(key)
        if not own and not OmegaConf.is_dict(OmegaConf.select(cfg, key)):
            set_plain(cfg, key, value, saved)
    check_given_again(cfg, saved, given)
    return cfg


def saved_settings(checkpoint: dict, keys: tuple[str, ...]) -> dict[str, Any]:
    """{dotted key: plain value} of a checkpoint's settings; groups have the name of their class.

    Of its callbacks the average of the weights and the seed are taken, and which checkpoint is
    tested; the others only watch.
    """
    try:
        flat = flatten(checkpoint["sparsereg"]["config"])
    except ValueError as error:
        raise UserError(f"the checkpoint's settings cannot be read: {error}") from None
    saved = {}
    for key, value in flat.items():
        if keys and not {key, first_part(key)} & {*keys}:
            continue
        if Role.STARTS in roles_of(key) or is_watching(key):
            continue
        if Role.MACHINE not in roles_of(key):
            check_saved(key, value)
        saved[key] = value
    return saved


def is_watching(key: str) -> bool:
    return first_part(key) == "callbacks" and not key.startswith((*TAKEN, EVALUATED))


def check_saved(key: str, value: Any) -> None:
    """Raise UserError unless it is a plain value of a known setting."""
    by_layer = Role.BY_LAYER in roles_of(key) and is_plain_table(value)
    if not is_plain(value) and not by_layer:
        raise UserError(f"the checkpoint's settings are not plain values: {key}={value}")
    row = SETTINGS.get(key)
    is_class = key in (*GROUPS, "trainer") or key in TAKEN
    if row is None and not is_class:
        raise UserError(f"the checkpoint has a setting that this version does not know: {key}")
    if not is_class and not row.check(value):
        raise UserError(f"the checkpoint's {key}={value} must be {row.wanted}")


def set_plain(cfg: DictConfig, key: str, value: Any, saved: dict[str, Any]) -> None:
    """Set a value, unless it repeats a flat key, to which the setting stays tied (`${seed}`)."""
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, group) if group else cfg
    if not OmegaConf.is_dict(node) or name not in node:
        raise UserError(f"the checkpoint has a setting that this version does not know: {key}")
    tied = OmegaConf.is_interpolation(node, name) and value == saved.get(name)
    if not tied:
        node[name] = value


def check_given_again(cfg: DictConfig, saved: dict[str, Any], given: set[str]) -> None:
    """Raise UserError for what a result depends on and a file does not decide."""
    missing = [
        as_argument(saved[key], key)
        for key in settings_with(Role.AGAIN)
        if saved.get(key) is not None
        and not {key, first_part(key)} & given
        and not same_value(cfg, key, saved[key])
    ]
    if missing:
        raise UserError(
            f"the checkpoint's run had {' '.join(missing)}, and a file does not say what is opened "
            "or which devices work: add that, or what is meant instead"
        )


def same_value(cfg: DictConfig, key: str, saved: Any) -> bool:
    now = OmegaConf.select(cfg, key)
    if Role.PATH not in roles_of(key) or not isinstance(saved, str) or now is None:
        return str(now) == str(saved)
    return Path(now).expanduser().absolute() == Path(saved).expanduser().absolute()


def run_settings(cfg: DictConfig, checkpoint: dict | None) -> tuple[DictConfig, dict]:
    """The configuration of this run, and what its checkpoints say of it in plain types.

    A resumed run has the settings of its checkpoint, except those given again, and writes beside
    the folder of the checkpoint.
    """
    if cfg.resume_training:
        cfg = resumed_settings(cfg, checkpoint)
    elif cfg.keep_gates and not any(k.endswith("qz_loga") for k in checkpoint["state_dict"]):
        raise UserError(
            f"keep_gates=true, but ckpt_path={cfg.ckpt_path} has no gates: leave it out, new gates "
            "start as droprate_init says"
        )
    plain = to_plain(with_whole_paths(cfg))
    plain["model"].pop("pretrained", None)  # the checkpoint has the weights
    record = {
        "overrides": typed(),  # for who wonders; nothing reads them again
        "config": plain,
        "network": {k: v for k, v in plain["model"].items() if k != "_target_"},
    }
    return cfg, record


def with_whole_paths(cfg: DictConfig) -> DictConfig:
    """What is typed means the same in any working directory; defaults are those of each."""
    cfg = copy.deepcopy(cfg)
    for key in {key_of(override) for override in typed()} & {*settings_with(Role.PATH)}:
        if path := OmegaConf.select(cfg, key):
            OmegaConf.update(cfg, key, str(Path(path).expanduser().absolute()))
    return cfg


def resumed_settings(cfg: DictConfig, checkpoint: dict) -> DictConfig:
    resumed = settings_of(checkpoint, cfg)
    beside = output_dir_of(Path(cfg.ckpt_path))
    if beside is not None and "output_dir" not in given_settings(cfg):
        resumed.output_dir = str(beside)
    check_settings(resumed, typed())
    check_devices(resumed.trainer)
    if is_first_process():
        say_what_is_not_taken(checkpoint, resumed)
    return resumed


def output_dir_of(checkpoint: Path) -> Path | None:
    """OUTPUT_DIR of OUTPUT_DIR/lightning_logs/version_N/checkpoints/last.ckpt."""
    if len(checkpoint.parents) <= 3:
        checkpoint = checkpoint.absolute()
    is_run = len(checkpoint.parents) > 3 and checkpoint.parts[-4] == "lightning_logs"
    return checkpoint.parents[3] if is_run else None


def say_what_is_not_taken(checkpoint: dict, cfg: DictConfig) -> None:
    """Loggers and devices of the checkpoint's run that this one goes without."""
    saved, now = flatten(checkpoint["sparsereg"]["config"]), flatten(to_plain(cfg))
    loggers = [key for key in saved if re.fullmatch(r"logger\.\w+", key) and key not in now]
    others = [
        f"{key}={saved[key]}"
        for key in settings_with(Role.MACHINE)
        if roles_of(key) == Role.MACHINE and key in saved and saved[key] != now.get(key)
    ]
    if left := others + loggers:
        print(printable(f"not taken from the checkpoint: {', '.join(left)}"), flush=True)


def finetune_settings(cfg: DictConfig, cut: Path) -> DictConfig:
    """Settings of the run that trains the cut network on."""
    cfg, defaults = copy.deepcopy(cfg), default_settings()
    cfg.trainer.max_epochs = cfg.finetune_epochs
    if cfg.finetune_lr is not None:
        cfg.optimizer.lr = cfg.finetune_lr
    cfg.model = defaults.model  # not used: the network is as it was cut
    asked_of_gates = [*settings_with(Role.NEEDS_GATES), *settings_that_need("target_sparsity")]
    for key in (*asked_of_gates, "resume_training", "finetune_epochs", "finetune_lr"):
        cfg[key] = defaults[key]
    cfg.ckpt_path, cfg.without_using_gate = str(cut), True
    return cfg
