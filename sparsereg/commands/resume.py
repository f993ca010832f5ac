"""The settings of a run that goes on, or is tested: they come with its checkpoint."""

import re
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sparsereg.commands.checks import check_target
from sparsereg.commands.command_line import CONFIG
from sparsereg.commands.comparable import flatten
from sparsereg.commands.machine import check_devices
from sparsereg.commands.settings import check_settings, to_plain
from sparsereg.errors import UserError

# What is replayed from a checkpoint only chooses among this repository's own configuration files
# and sets plain values: no interpolation (it could read the environment), no class to call.
HARMLESS = re.compile(r"(?!hydra)(?!.*(\$\{|_target_))[A-Za-z][\w.]*=.*", re.DOTALL)


STARTS = ("ckpt_path", "resume_training", "model.pretrained")  # what starts this run only
TARGET = ("cost", "target_sparsity", "target_warmup", "settle_epochs", "dual_lr")
KEPT = (
    "model",
    "optimizer",
    "scheduler",
    "gate_lr",
    "min_open_channels",
    "loga_bounds",
    *TARGET,
)  # by a resumed run


def is_harmless(override: str) -> bool:
    key, _, value = override.partition("=")
    if (CONFIG / key).is_dir():
        return value.isidentifier() and (CONFIG / key / f"{value}.yaml").is_file()
    return HARMLESS.fullmatch(override) is not None


def settings_of(checkpoint: dict) -> tuple[DictConfig, list[str]]:
    """Settings of the run that wrote a checkpoint, changed by this command line.

    Returns:
        The configuration, and the overrides that lead to it.

    Raises:
        UserError: the checkpoint asks for more than plain values.
    """
    saved = checkpoint["sparsereg"]["overrides"]
    refused = [o for o in saved if not is_harmless(o)]
    if refused:
        raise UserError(f"the checkpoint's settings are not plain values: {refused[0]}")
    given = HydraConfig.get().overrides.task
    keys = {o.split("=")[0] for o in given}
    # another data set or optimizer has other keys; every trainer has the same
    chosen = {key for key in keys if (CONFIG / key).is_dir()} - {"trainer"}
    kept = [o for o in saved if o.split("=")[0] not in keys and o.split(".")[0] not in chosen]
    overrides = [*kept, *given]
    return compose("train", overrides=overrides), overrides


def run_settings(
    cfg: DictConfig, overrides: list[str], checkpoint: dict | None
) -> tuple[DictConfig, dict]:
    """The configuration of this run, and what its checkpoints say of it in plain types.

    A resumed run has the settings of its checkpoint, except those given again.
    """
    if cfg.resume_training:
        cfg, overrides = settings_of(checkpoint)
        check_settings(cfg)
        check_target(cfg, overrides)
        check_devices(cfg.trainer)
    elif cfg.keep_gates and not any(k.endswith("qz_loga") for k in checkpoint["state_dict"]):
        raise UserError(
            f"keep_gates=true, but ckpt_path={cfg.ckpt_path} has no gates: leave it out, new gates "
            "start as droprate_init says"
        )
    plain = to_plain(cfg)
    plain["model"].pop("pretrained", None)  # the checkpoint has the weights
    record = {
        "overrides": replayable(overrides, plain),
        "config": plain,
        "network": {k: v for k, v in plain["model"].items() if k != "_target_"},
    }
    return cfg, record


def finetune_settings(
    cfg: DictConfig, overrides: list[str], path: Path
) -> tuple[DictConfig, list[str]]:
    """Settings of the run that trains the cut network on, and the overrides that lead to them."""
    changed = {
        "ckpt_path": quote(path),
        "without_using_gate": "true",
        "target_sparsity": "null",
        **dict.fromkeys(("target_warmup", "settle_epochs", "dual_lr"), "null"),
        **dict.fromkeys(("keep_gates", "gate_reductions"), "false"),
        **dict.fromkeys(("lambda_warmup", "finetune_epochs"), "0"),
        "trainer.max_epochs": cfg.finetune_epochs,
    }
    if cfg.finetune_lr is not None:
        changed["optimizer.lr"] = cfg.finetune_lr
    left_out = {"model", "finetune_lr", *changed}  # the network is as it was cut
    kept = [o for o in overrides if not {o.split("=")[0], o.split(".")[0]} & left_out]
    overrides = [*kept, *(f"{key}={value}" for key, value in changed.items())]
    return compose("train", overrides=overrides), overrides


def replayable(overrides: list[str], plain: dict) -> list[str]:
    """What a checkpoint keeps of the overrides: not what only started its run."""
    return [to_replay(o, plain) for o in overrides if o.split("=")[0] not in STARTS]


def to_replay(override: str, plain: dict) -> str:
    """An override that means the same in any working directory, given what it has set."""
    key = override.split("=")[0]
    if key not in ("data.root", "data.cache_dir", "loss.teacher"):
        return override
    group, name = key.split(".")
    path = plain[group][name]
    if path is None:
        return override
    return f"{key}={quote(Path(path).expanduser().absolute())}"


def quote(path: Path) -> str:
    """A path as the value of an override, whatever characters it has."""
    return "'" + str(path).replace("'", "\\'") + "'"


def refuse_other_groups(command: str, *allowed: str) -> None:
    """Raise UserError for a setting on the command line that would have no effect."""
    for override in HydraConfig.get().overrides.task:
        if re.split(r"[.=]", override)[0] not in allowed:
            names = ", ".join(allowed)
            raise UserError(f"{override}: the checkpoint knows it; {command} takes {names}")


def check_compact(checkpoint: dict, cfg: DictConfig, overrides: list[str], classes: list) -> None:
    """Raise UserError for settings that a network which is cut already cannot follow."""
    if not cfg.without_using_gate:
        raise UserError(
            f"ckpt_path={cfg.ckpt_path} is a compact network, which is trained without gates: add "
            "without_using_gate=true"
        )
    for override in overrides:
        if override.split("=")[0].split(".")[0] == "model":
            raise UserError(f"{override}: a compact network is as it was cut; leave it out")
    trained = checkpoint["sparsereg"]["data"]["classes"]
    if len(trained) != len(classes):
        raise UserError(
            f"the compact network tells {len(trained)} classes apart and the data have "
            f"{len(classes)}: choose its data with data=… and data.root=…"
        )


def check_resumable(checkpoint: dict, cfg: DictConfig) -> None:
    """Raise UserError unless the checkpoint's run can go on with these settings."""
    if "loops" not in checkpoint:
        raise UserError(
            f"ckpt_path={cfg.ckpt_path} holds a network without the state of a training run: "
            "train it on with resume_training=false"
        )
    gated = any(key.endswith("qz_loga") for key in checkpoint["state_dict"])
    if gated == cfg.without_using_gate:
        raise UserError(
            f"without_using_gate={str(cfg.without_using_gate).lower()}, but the checkpoint was "
            f"trained with{'' if gated else 'out'} gates: resume with "
            f"without_using_gate={str(not gated).lower()}"
        )
    before, now = checkpoint["sparsereg"]["config"], to_plain(cfg)
    for key in KEPT:
        for name, old, new in differences({key: before.get(key, now[key])}, {key: now[key]}):
            new, old = ("null" if value is None else value for value in (new, old))
            raise UserError(
                f"{name}={new}, but the checkpoint was trained with {old}: a resumed run keeps it; "
                "resume_training=false starts a new run with its weights"
            )
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if epochs >= cfg.trainer.max_epochs:
        raise UserError(
            f"nothing left to train: the checkpoint has {epochs} of "
            f"trainer.max_epochs={cfg.trainer.max_epochs} epochs"
        )


def differences(old: dict, new: dict) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of all values that differ in two plain configurations; classes
    are compared by name, whichever module an older version had them in."""
    old, new = flatten(old), flatten(new)
    keys = [*old, *(key for key in new if key not in old)]
    pairs = [(key, old.get(key), new.get(key)) for key in keys]
    return [(key, before, now) for key, before, now in pairs if before != now]
